"""`tuwen evaluate`: how good the built-in models are."""

from __future__ import annotations

import os
import sys

import typer

from api.cli.place import place

app = typer.Typer()
PANEL = "Models"


@app.command(
    rich_help_panel=PANEL,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def evaluate(context: typer.Context) -> None:
    """Measure the built-in models and write a report: evaluate --quick."""
    # This runs in another process, because the API side imports neither the workers nor torch.
    command = [sys.executable, "-P", "-m", "workers.lab.evaluation", *context.args]
    os.execve(sys.executable, command, place(context).environment())  # noqa: S606
