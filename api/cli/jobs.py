"""`tuwen jobs …`: show jobs, cancel them, run them again, delete them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from api.cli import terminal
from api.cli.images import AsJson
from api.cli.place import place
from api.cli.terminal import err, out
from tuwen.jobs import Kind, Status

app = typer.Typer(help="Show jobs, cancel them, run them again, delete them.", no_args_is_help=True)

Ids = Annotated[list[UUID], typer.Argument(metavar="ID")]


@app.command("ls")
def list_jobs(
    context: typer.Context,
    status: Annotated[Status | None, typer.Option()] = None,
    kind: Annotated[Kind | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with place(context).client() as client:
        jobs = client.list(status=status, kind=kind, limit=limit)
    if as_json:
        for job in jobs:
            terminal.print_json(job)
    elif jobs:
        terminal.print_jobs(jobs)
    else:
        err.print("no such jobs")


@app.command()
def show(context: typer.Context, ids: Ids, as_json: AsJson = False) -> None:
    """Show everything about jobs."""
    with place(context).client() as client:
        for id in ids:
            job = client.get(id)
            terminal.print_json(job) if as_json else terminal.print_job(job)


@app.command()
def watch(context: typer.Context, ids: Ids, as_json: AsJson = False) -> None:
    """Wait for jobs and show how they ended."""
    with place(context).client() as client:
        over = list(terminal.wait_for(client, [client.get(id) for id in ids]))
    for job in over:
        terminal.print_json(job) if as_json else terminal.print_job(job)
    if any(job.status is not Status.SUCCEEDED for job in over):
        raise typer.Exit(1)


@app.command()
def cancel(context: typer.Context, ids: Ids) -> None:
    """Cancel jobs: queued jobs end at once, running jobs at their next step."""
    with place(context).client() as client:
        for id in ids:
            job = client.cancel(id)
            out.print(f"{id} {job.status if job.status.terminal else 'is being cancelled'}")


@app.command()
def retry(context: typer.Context, ids: Ids) -> None:
    """Queue jobs again that failed, expired, or were cancelled or quarantined."""
    with place(context).client() as client:
        for id in ids:
            out.print(f"{id} {client.retry(id).status}")


@app.command("rm")
def remove(context: typer.Context, ids: Ids) -> None:
    """Delete jobs that are over, with their results and images; cancel others first."""
    with place(context).client() as client:
        for id in ids:
            client.delete(id)
            out.print(f"{id} deleted")
