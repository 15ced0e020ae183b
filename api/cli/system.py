"""`tuwen up | demo | doctor | migrate`, and the single processes `api | worker | housekeeper | flower`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from api.cli import terminal
from api.cli.place import place
from api.cli.terminal import err
from shared.settings import Settings
from tuwen.installation import run_module

# The commands import what they need themselves: with SQLAlchemy, Celery and alembic every command of the program,
# `tuwen generate` too, would take twice as long to start.

app = typer.Typer()
INSTALLATION = "Installation"
PROCESSES = "Single processes, for a deployment of your own"


@app.command(rich_help_panel=INSTALLATION)
def up(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Folder for all data of the system; by default .tuwen.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the API, by default 8000; 0 picks a free one.")
    ] = None,
    flower_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of Flower, by default 5555; 0 picks a free one.")
    ] = None,
    redis_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of Redis; 0 picks a free one.")] = 0,
    postgres_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of PostgreSQL; 0 picks a free one.")] = 0,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            "--devices",
            help="Device (cpu, cuda:0, …), one worker each; all means every GPU. By default cpu.",
        ),
    ] = None,
    flower: Annotated[bool, typer.Option(help="Whether to start Flower.")] = True,
) -> None:
    """Start the whole system on this machine, until Ctrl-C."""
    from api.embedded.stack import System, devices

    ports: dict[str, Any] = {"port": port, "flower_port": flower_port}
    given = {name: number for name, number in ports.items() if number is not None}
    settings = Settings(data_dir=data or place(context).data, **given)
    for name in {"database_url", "redis_url"} & settings.model_fields_set:
        err.print(f"[yellow]note:[/] TUWEN_{name.upper()} is set, but `tuwen up` brings servers of its own")
    stop_on_signals()
    with terminal.FamilyView() as view:
        system = System(
            settings,
            view.tell,
            devices=devices(device or [settings.device]),
            redis_port=redis_port,
            postgres_port=postgres_port,
            flower=flower,
        )
        try:
            with system:
                terminal.print_addresses(system)
                system.supervise()
        except KeyboardInterrupt:
            err.print(f"  stopped; the data stay in {escape(terminal.short_path(system.data))}")


@app.command(rich_help_panel=INSTALLATION)
def demo(context: typer.Context) -> None:
    """Start a separate system, let it draw, describe, recognise and match, and stop it again."""
    from api.embedded.servers import embedded_servers

    embedded_servers()  # the packages of the demonstration come with the same extra
    from api.cli import demo as demonstration

    stop_on_signals()
    try:
        demonstration.run(place(context).data / "demo")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command(rich_help_panel=INSTALLATION)
def doctor(context: typer.Context, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what is wrong with this installation, and what to do about it."""
    from api.cli.doctor import examine

    here = place(context)
    serious = False
    for finding in examine(here.settings(), here.url, embedded=here.system is not None):
        terminal.print_json(asdict(finding)) if as_json else terminal.print_finding(finding)
        serious = serious or (finding.serious and not finding.fine)
    if serious:
        raise typer.Exit(1)


@app.command(rich_help_panel=INSTALLATION)
def migrate(context: typer.Context) -> None:
    """Bring the database to the schema of this version."""
    from shared import migrations

    migrations.migrate(place(context).settings().database_url)
    err.print("the schema is current")


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(rich_help_panel=PROCESSES)
def api(context: typer.Context) -> None:
    """Serve the HTTP API."""
    _become(context, "api")


@app.command(rich_help_panel=PROCESSES, context_settings=_PASSED_ON)
def worker(context: typer.Context) -> None:
    """Run jobs on one device, for example: worker --device cuda:0."""
    _become(context, "workers", "worker")


@app.command(rich_help_panel=PROCESSES, context_settings=_PASSED_ON)
def housekeeper(context: typer.Context) -> None:
    """Requeue lost jobs, process batches, plan and export data sets, and deliver webhooks."""
    _become(context, "workers", "housekeeper")


@app.command(rich_help_panel=PROCESSES, context_settings=_PASSED_ON)
def flower(context: typer.Context) -> None:
    """Serve Flower, the monitoring page."""
    _become(context, "workers", "flower")


def _become(context: typer.Context, module: str, *arguments: str) -> NoReturn:
    """Replace this process by `python -m MODULE …`; the producer must not import the workers."""
    command = run_module(module, *arguments, *context.args)
    os.execve(sys.executable, command, place(context).environment())  # noqa: S606


def stop_on_signals() -> None:
    """Make SIGTERM and a closed terminal act like Ctrl-C, also in the background, where shells ignore SIGINT."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP on purpose.
        if sign is not signal.SIGHUP or signal.getsignal(sign) is not signal.SIG_IGN:
            signal.signal(sign, signal.default_int_handler)
