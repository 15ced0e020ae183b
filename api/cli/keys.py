"""`tuwen keys …`: manage API keys directly in the database, for administrators who can reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.markup import escape

from api.cli import terminal
from api.cli.jobs import Ids
from api.cli.place import open_database, place
from api.cli.terminal import err, out
from shared.settings import MOST_QUOTA, Settings

if TYPE_CHECKING:
    from shared.database import Database

app = typer.Typer(help="Manage API keys, directly in the database.", no_args_is_help=True)

_DEFAULT = "default"
_MOST_BYTES = 2**62


def _size(text: str) -> int | None:
    """Bytes written as `50GiB`; None for `default`."""
    if text == _DEFAULT:
        return None
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    if not 1 <= size <= _MOST_BYTES:
        raise typer.BadParameter(f"{text!r} is no size such as 500MiB or 50GiB")
    return int(size)


def _count(text: str) -> int | None:
    """A number; None for `default`."""
    if text == _DEFAULT:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= MOST_QUOTA):
        raise typer.BadParameter(f"{text!r} is no number from 1 to {MOST_QUOTA}")
    return int(text)


Quota = Annotated[
    int | None, typer.Option(min=1, max=MOST_QUOTA, help="Unfinished jobs that the key may have at once.")
]
MaxStored = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Bytes that may be stored, such as 50GiB: uploads, files of batches and pictures of jobs. "
        "`default` is TUWEN_DEFAULT_STORED_BYTES.",
    ),
]
MaxDatasets = Annotated[
    str | None,
    typer.Option(metavar="N", help="Unfinished data sets at once; `default` is TUWEN_DEFAULT_DATASETS."),
]
MaxBatches = Annotated[
    str | None, typer.Option(metavar="N", help="Unfinished batches at once; `default` is TUWEN_DEFAULT_BATCHES.")
]


def _bounds(max_stored: str | None, max_datasets: str | None, max_batches: str | None) -> dict[str, int | None]:
    """The columns of those options that are given."""
    bounds: dict[str, int | None] = {}
    if max_stored is not None:
        bounds["max_stored_bytes"] = _size(max_stored)
    if max_datasets is not None:
        bounds["max_datasets"] = _count(max_datasets)
    if max_batches is not None:
        bounds["max_batches"] = _count(max_batches)
    return bounds


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use the key.")],
    tenant: Annotated[
        str | None, typer.Option(help="Tenant whose jobs and files the key sees; by default a tenant called NAME.")
    ] = None,
    quota: Quota = None,
    datasets: Annotated[
        str | None,
        typer.Option(metavar="PLACES", help="Folders and s3:// prefixes, a,b, that its data sets may lie in."),
    ] = None,
    max_stored: MaxStored = None,
    max_datasets: MaxDatasets = None,
    max_batches: MaxBatches = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the key, its id and its webhook secret.")] = False,
) -> None:
    """Make a key and print it, and the secret that signs its webhooks; neither can be shown again.

    Without --datasets it has no data sets.
    """
    from api.http.auth import new_key, new_webhook_secret

    settings = place(context).settings()
    roots = _roots(datasets, settings)
    key, digest = new_key()
    secret = new_webhook_secret()
    bounds = _bounds(max_stored, max_datasets, max_batches)
    with open_database(context) as database:
        _warn_of_shared_roots(database, tenant or name, roots)
        id = database.keys.add(
            name=name,
            tenant=tenant or name,
            sha256=digest,
            quota=quota or settings.default_quota,
            dataset_roots=roots,
            webhook_secret=secret,
            **bounds,
        )
    if as_json:
        terminal.print_json({"id": id, "key": key, "webhook_secret": secret.get_secret_value()})
        return
    out.print(key)
    err.print("[dim]Only its hash is kept, so it cannot be shown again. Clients send it as TUWEN_API_KEY.[/]")
    err.print(f"[dim]Webhooks of its jobs are signed with[/] {secret.get_secret_value()}")


@app.command("ls")
def list_keys(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List keys, including revoked ones, with their bounds and what their tenants use of them."""
    settings = place(context).settings()
    with open_database(context) as database:
        keys = database.keys.all()
        usage = database.usage.of(key.tenant for key in keys)
    if not as_json:
        terminal.print_keys(keys, usage, settings)
        return
    for key in keys:
        shown: dict[str, Any] = {name: value for name, value in asdict(key).items() if name != "sha256"}
        terminal.print_json(shown | {"used": {k: v for k, v in asdict(usage[key.tenant]).items() if k != "tenant"}})


@app.command()
def limit(
    context: typer.Context,
    ids: Ids,
    quota: Quota = None,
    max_stored: MaxStored = None,
    max_datasets: MaxDatasets = None,
    max_batches: MaxBatches = None,
) -> None:
    """Change bounds of keys; every API process knows them within a second."""
    bounds = _bounds(max_stored, max_datasets, max_batches) | ({"quota": quota} if quota else {})
    if not bounds:
        raise typer.BadParameter("give a bound to change: --quota, --max-stored, --max-datasets or --max-batches")
    with open_database(context) as database:
        for id in ids:
            database.keys.limit(id, **bounds)
            out.print(f"{id} changed")


@app.command("rotate-webhook-secret")
def rotate_webhook_secret(
    context: typer.Context,
    id: Annotated[UUID, typer.Argument(metavar="ID")],
    overlap: Annotated[
        float, typer.Option(metavar="HOURS", min=0, max=8760, help="Hours for which the secret before signs too.")
    ] = 24.0,
) -> None:
    """Give a key another webhook secret and print it; it cannot be shown again.

    Until the overlap is over, webhooks bear a signature by each of both, and receivers may change in their own time. A
    key of an early release, whose webhooks TUWEN_WEBHOOK_SECRET signs, gets a secret of its own this way.
    """
    from api.http.auth import new_webhook_secret

    secret = new_webhook_secret()
    with open_database(context) as database:
        database.keys.rotate_webhook_secret(id, secret, overlap * 3600)
    out.print(secret.get_secret_value())
    err.print(f"[dim]The secret before signs too for another {overlap:g} hours.[/]")


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
    """Revoke keys. What such a key is in the middle of ends within seconds; its jobs and data sets go on.

    `tuwen keys datasets ID none` stops the data sets too.
    """
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
