"""`tuwen keys …`: manage API keys directly in the database, for administrators who can reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.markup import escape

from api.cli import terminal
from api.cli.jobs import Ids
from api.cli.place import open_database, place
from api.cli.terminal import err, out
from shared.settings import MOST_QUOTA, Settings

if TYPE_CHECKING:
    from shared.database import Database

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
    datasets: Annotated[
        str | None,
        typer.Option(metavar="PLACES", help="Folders and s3:// prefixes, a,b, that its data sets may lie in."),
    ] = None,
) -> None:
    """Make a key and print it; it cannot be shown again. Without --datasets it has no data sets."""
    from api.http.auth import new_key

    settings = place(context).settings()
    roots = _roots(datasets, settings)
    key, digest = new_key()
    with open_database(context) as database:
        _warn_of_shared_roots(database, tenant or name, roots)
        database.keys.add(
            name=name,
            tenant=tenant or name,
            sha256=digest,
            quota=quota or settings.default_quota,
            dataset_roots=roots,
        )
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


@app.command("datasets")
def allow_datasets(
    context: typer.Context,
    id: Annotated[UUID, typer.Argument(metavar="ID")],
    places: Annotated[str, typer.Argument(metavar="PLACES", help="Folders and s3:// prefixes, a,b; or none.")],
) -> None:
    """Change the places that the data sets of a key may lie in; unfinished ones outside them end with this reason."""
    roots = _roots(None if places == "none" else places, place(context).settings())
    with open_database(context) as database:
        for key in database.keys.all():
            if key.id == id:
                _warn_of_shared_roots(database, key.tenant, roots)
        database.keys.allow_datasets(id, roots)
    out.print(f"{id} {', '.join(roots) or 'none'}", soft_wrap=True, markup=False)


@app.command()
def release(
    context: typer.Context,
    places: Annotated[list[str], typer.Argument(metavar="PLACE", help="Folder or prefix, as the error names it.")],
) -> None:
    """Forget which tenant has exported to places, so that another can: move its files away first."""
    from shared.intake.dataset_places import normalize

    with open_database(context) as database:
        for each in places:
            database.dataset_places.release(normalize(each))
            out.print(f"{each} released", soft_wrap=True, markup=False)


@app.command()
def revoke(context: typer.Context, ids: Ids) -> None:
    """Revoke keys; their jobs and data sets go on. `tuwen keys datasets ID none` stops the data sets too."""
    with open_database(context) as database:
        for id in ids:
            database.keys.revoke(id)
            out.print(f"{id} revoked")


def _roots(places: str | None, settings: Settings) -> tuple[str, ...]:
    """The roots in their normal form. Raises InvalidRequest, Forbidden."""
    from shared.intake.dataset_places import Permission, normalize

    roots = tuple(dict.fromkeys(normalize(part.strip()) for part in (places or "").split(",") if part.strip()))
    bounds = Permission.of(settings, None if settings.dataset_roots else roots)
    for root in roots:
        bounds.require_root(root)
    return roots


def _warn_of_shared_roots(database: Database, tenant: str, roots: Sequence[str]) -> None:
    """Say which other tenants can read what lies in these roots too."""
    from shared.intake.dataset_places import within

    for key in database.keys.all():
        if key.tenant == tenant or key.revoked_at is not None:
            continue
        for root in roots:
            if any(within(root, other) or within(other, root) for other in key.dataset_roots):
                said = (
                    f"{root} is open to tenant {key.tenant} too (key {key.id}): each can read what the other has there"
                )
                err.print(f"[yellow]{escape(said)}[/]", soft_wrap=True)
