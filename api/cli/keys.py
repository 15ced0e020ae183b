"""`tuwen keys …`: manage API keys directly in the database, for administrators who can reach it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from api.cli import terminal
from api.cli.jobs import Ids
from api.cli.place import open_database, place
from api.cli.terminal import err, out
from shared.settings import MOST_QUOTA

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
    max_stored: MaxStored = None,
    max_datasets: MaxDatasets = None,
    max_batches: MaxBatches = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the key, its id and its webhook secret.")] = False,
) -> None:
    """Make a key and print it, and the secret that signs its webhooks; neither can be shown again."""
    from api.http.auth import new_key, new_webhook_secret

    settings = place(context).settings()
    key, digest = new_key()
    secret = new_webhook_secret()
    bounds = _bounds(max_stored, max_datasets, max_batches)
    with open_database(context) as database:
        id = database.keys.add(
            name=name,
            tenant=tenant or name,
            sha256=digest,
            quota=quota or settings.default_quota,
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


@app.command()
def revoke(context: typer.Context, ids: Ids) -> None:
    """Revoke keys; their jobs stay. What such a key is in the middle of ends within seconds."""
    with open_database(context) as database:
        for id in ids:
            database.keys.revoke(id)
            out.print(f"{id} revoked")
