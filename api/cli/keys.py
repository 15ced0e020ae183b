"""`tuwen keys …`: manage API keys directly in the database, for administrators who can reach it."""

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
