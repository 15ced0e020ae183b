"""`tuwen train`: train the built-in models, on the drawn world or on your own pictures."""

from __future__ import annotations

import os
import sys

import typer

from tuwen.installation import require_installed, run_module

app = typer.Typer()
PANEL = "Models"


@app.command(
    rich_help_panel=PANEL,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Train recognizer, describer, matcher, generator or all, for example: train recognizer --data photos/."""
    # Training imports torch and the workers, which this process must not.
    command = run_module("workers.lab.training", *context.args)
    require_installed("workers.lab.training", "torch", "matplotlib", extra="training")
    os.execv(sys.executable, command)  # noqa: S606
