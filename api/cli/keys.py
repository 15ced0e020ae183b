"""`tuwen keys …`: manage API keys and what was stored with them, directly in the database, for administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from api.cli import terminal
from api.cli.jobs import Ids
from api.cli.place import open_database, place
from api.cli.terminal import err, out
from shared.settings import MOST_QUOTA

app = typer.Typer(help="Manage API keys, directly in the database.", no_args_is_help=True)

_PATIENCE = 60.0
"""Seconds for running jobs to end; a worker that died with one is replaced sooner."""


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use the key.")],
    tenant: Annotated[
        str | None, typer.Option(help="Tenant whose jobs and files the key sees; by default a tenant called NAME.")
    ] = None,
    quota: Annotated[
        int | None, typer.Option(min=1, max=MOST_QUOTA, help="Unfinished jobs that the key may have at once.")
    ] = None,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    from api.http.auth import new_key

    settings = place(context).settings()
    key, digest = new_key()
    with open_database(context) as database:
        database.keys.add(name=name, tenant=tenant or name, sha256=digest, quota=quota or settings.default_quota)
    out.print(key)
    err.print("[dim]Only its hash is kept, so it cannot be shown again. Clients send it as TUWEN_API_KEY.[/]")


@app.command("ls")
def list_keys(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List keys, including revoked ones."""
    with open_database(context) as database:
        keys = database.keys.all()
    if as_json:
        for key in keys:
            terminal.print_json({name: value for name, value in asdict(key).items() if name != "sha256"})
    else:
        terminal.print_keys(keys)


@app.command()
def revoke(context: typer.Context, ids: Ids) -> None:
    """Revoke keys; their jobs stay."""
    with open_database(context) as database:
        for id in ids:
            database.keys.revoke(id)
            out.print(f"{id} revoked")


@app.command()
def forget(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose data; `tuwen keys ls` shows it for each key.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete everything that a tenant ever stored: jobs, results, uploads, data sets, batches. Its keys stay.

    Exported data sets stay where they were written. If it is cut off, give the command again.
    """
    from api.producer.forgetting import Forgetting, still_working_keys
    from shared.objects.storage import ObjectStore

    settings = place(context).settings()
    with open_database(context) as database:
        if not yes:
            jobs, datasets = database.deletion.unfinished(tenant)
            running = f" ({jobs} jobs and {datasets} data sets of it are not over)" if jobs + datasets else ""
            typer.confirm(f"Delete everything that {tenant} stored{running}? It cannot be undone", abort=True, err=True)
        gone = Forgetting(settings, database, ObjectStore.open(settings)).forget(tenant, patience=_PATIENCE)
        keys = still_working_keys(database, tenant)
    for what, count in gone.counts.items():
        if count:
            out.print(f"{count} {what}")
    if not +gone.counts:
        err.print(f"nothing of {tenant} is stored")
    soon = f"nothing names any more; the housekeeper removes them in about {settings.orphan_age / 3600:g} h"
    if gone.young_objects:
        err.print(f"{gone.young_objects} more objects were stored lately, and {soon}")
    if gone.unanswered:
        err.print(f"the storage did not answer: objects of {gone.unanswered} rows stay, which {soon}")
    if keys:
        err.print(f"{len(keys)} keys of {tenant} still work; revoke them with: tuwen keys revoke")
