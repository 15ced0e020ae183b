"""The command `tuwen`.

Exit codes: 0 done; 1 something failed; 2 wrong usage; 3 a service does not answer, try again; 130 interrupted.
Results go to standard output and everything else to standard error, so that pipes get results only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from api.cli import datasets, evaluation, images, jobs, keys, system, training, verification, webhooks
from api.cli.place import Place
from api.cli.terminal import err, out
from shared.intake.validation import invalid_fields
from tuwen.errors import TuwenError, Unauthorized, Unavailable
from tuwen.version import __version__

app = typer.Typer(
    help="Turn text into images and images into text, and measure how well they correspond.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(images.app)
app.add_typer(jobs.app, name="jobs", rich_help_panel=images.PANEL)
app.add_typer(datasets.app)
app.add_typer(datasets.datasets, name="datasets", rich_help_panel=images.PANEL)
app.add_typer(training.app)
app.add_typer(evaluation.app)
app.add_typer(system.app)
app.add_typer(verification.app)
app.add_typer(keys.app, name="keys", rich_help_panel=system.INSTALLATION)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=system.INSTALLATION)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"tuwen {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(envvar="TUWEN_URL", help="URL of the API; by default that of the system running here.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TUWEN_API_KEY", help="API key; not needed for an open installation on this machine."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded system; by default .tuwen.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Place(url, api_key, data)


def main() -> None:
    """Entry point: every expected error becomes a line that says what to do, never a traceback."""
    try:
        app()
    except ValidationError as error:
        for wrong in invalid_fields(error.errors()).errors:
            _complain(f"{wrong.field}: {wrong.detail}" if wrong.field != "body" else wrong.detail)
        sys.exit(2)
    except Unauthorized as error:
        _complain(f"{error} Give a key with --api-key or TUWEN_API_KEY; `tuwen keys create NAME` makes one.")
        sys.exit(1)
    except TuwenError as error:
        # The field names the job that was refused, where there are many.
        _complain(f"{error.field}: {error}" if error.field and error.field not in str(error) else str(error))
        sys.exit(3 if isinstance(error, Unavailable) else 1)
    except BrokenPipeError:
        # The program that reads our output, such as `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _complain(message: str) -> None:
    err.print(f"[red]error:[/] {escape(message)}")
