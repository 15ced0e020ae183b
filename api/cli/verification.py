"""`tuwen verify`: whether every object that the database names is in the storage, as after a restore."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from api.cli import terminal
from api.cli.place import open_database, place
from api.cli.system import INSTALLATION
from api.cli.terminal import err, out

app = typer.Typer()


@app.command(rich_help_panel=INSTALLATION)
def verify(
    context: typer.Context,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept", help="Declare that database and storage belong together; orphans are collected again."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line for each object that is missing.")] = False,
) -> None:
    """Look in the storage for every object that the database names, for example after a restore. Changes nothing."""
    from shared.database.references import Subject
    from shared.objects.mark import ADVICE, StorageMark
    from shared.objects.storage import ObjectStore
    from shared.objects.verification import REMEDIES, verify

    with open_database(context) as database:
        store = ObjectStore.open(place(context).settings())
        looked_at: Counter[Subject] = Counter()
        wrong: Counter[Subject] = Counter()
        for step in verify(database, store):
            looked_at[step.subject] += step.looked_at
            wrong[step.subject] += len(step.faults)
            for fault in step.faults:
                if as_json:
                    terminal.print_json(asdict(fault) | {"remedy": REMEDIES[fault.subject]})
                else:
                    out.print(escape(f"{fault.subject}  {fault.id}  {fault.key}: {fault.problem}"), soft_wrap=True)
        for subject in Subject:
            err.print(f"{subject}: {looked_at[subject]} looked for, {wrong[subject]} not as they should be")
            if wrong[subject]:
                err.print(f"  {REMEDIES[subject]}")
        mark = StorageMark(database, store)
        if accept:
            mark.accept()
            err.print("database and storage belong together from now on")
        elif not mark.agrees():
            err.print(f"database and storage are of different times, so no orphan is collected: {ADVICE}")
    if wrong.total():
        raise typer.Exit(1)
