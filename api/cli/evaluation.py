"""`tuwen evaluate`: how good the built-in models are."""

from __future__ import annotations

import os
import sys

import typer

from api.cli.place import place
from tuwen.installation import require_installed, run_module

app = typer.Typer()
PANEL = "Models"


@app.command(
    rich_help_panel=PANEL,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def evaluate(context: typer.Context) -> None:
    """Measure the built-in models and write a report: evaluate --quick."""
    # This runs in another process, because the API side imports neither the workers nor torch.
    command = run_module("workers.lab.evaluation", *context.args)
    require_installed("workers.lab.evaluation", extra="evaluation")
    os.execve(sys.executable, command, place(context).environment())  # noqa: S606
