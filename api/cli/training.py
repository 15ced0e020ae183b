"""`tuwen train`: train the built-in models, on the drawn world or on your own pictures."""

from __future__ import annotations

import os
import sys

import typer

app = typer.Typer()
PANEL = "Models"


@app.command(
    rich_help_panel=PANEL,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Train recognizer, describer, matcher, generator or all, for example: train recognizer --data photos/."""
    # Training imports torch and the workers, which this process must not.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "workers.lab.training", *context.args])  # noqa: S606
