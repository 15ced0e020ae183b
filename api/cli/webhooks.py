"""`tuwen webhooks …`: show what receivers have not taken, and deliver it again, directly in the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer

from api.cli import terminal
from api.cli.place import open_database
from api.cli.terminal import err, out

app = typer.Typer(
    help="Show webhooks that were not delivered, and deliver them again, directly in the database.",
    no_args_is_help=True,
)


@app.command("ls")
def list_webhooks(
    context: typer.Context,
    late: Annotated[bool, typer.Option("--late", help="Only those owed for over a minute.")] = False,
    given_up: Annotated[bool, typer.Option("--given-up", help="Only those that are not tried any more.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000)] = 100,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List webhooks that were not delivered, the oldest first."""
    if late and given_up:
        raise typer.BadParameter("give one of --late and --given-up: what was given up is not late any more")
    with open_database(context) as database:
        found = database.webhooks.undelivered(state="late" if late else "given up" if given_up else None, most=limit)
        figures = database.webhooks.figures()
    if as_json:
        for webhook in found:
            terminal.print_json(asdict(webhook))
        return
    if found:
        terminal.print_webhooks(found)
    err.print(
        f"{figures.waiting} webhooks are still to be delivered, {figures.late} of them late; "
        f"{figures.given_up} were given up"
    )


@app.command()
def retry(
    context: typer.Context,
    ids: Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were given up.")] = False,
    host: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="All that were given up for this host.")
    ] = None,
) -> None:
    """Have webhooks delivered now, with new attempts. Receivers that got one after all know it by its id."""
    if sum((bool(ids), everything, host is not None)) != 1:
        raise typer.BadParameter("give the ids of webhooks, or --all, or --host")
    with open_database(context) as database:
        if ids:
            database.webhooks.retry(ids)
        else:
            ids = database.webhooks.retry_given_up(host)
    for id in ids:
        out.print(f"{id} is due")
    err.print(f"{len(ids)} webhooks are due; the housekeeper tries them within a minute")
