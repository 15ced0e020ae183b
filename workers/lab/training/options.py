"""What a training command is asked to do: `TrainOptions`, and the command line that they are read from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from workers.lab.training.recipe import OptimiserName, Schedule

MODELS = ("recognizer", "describer", "matcher", "generator")
"""The models in the order in which they are trained: describer and matcher take over the recogniser's encoder."""

Missing: TypeAlias = Literal["drop", "fill", "fail"]
"""What is done with an image of the user's that lacks a caption or labels."""

DESCRIPTION = """Train the built-in models: `tuwen train recognizer --minutes 10`.

A run that was interrupted, by its time budget or otherwise, continues when the same command is given again. `all`
trains one model after the other. With --data they learn from your own pictures, otherwise from the drawn world.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of `tuwen train`, as they were given."""

    model: str
    """One of `MODELS`, or "all"."""
    out: Path | None = None
    """Folder of the run; None is runs/MODEL, or runs for all models."""
    minutes: float | None = None
    """Time budget; None trains to the end."""
    ship: bool = False
    """Whether the finished weights go where the built-in engines look for them."""

    data: str | None = None
    """Source of the user's own pictures; None is the drawn world."""
    missing: Missing = "drop"
    root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    pictures: int | None = None
    """Training pictures to draw, or own ones to read at most."""
    checked: int = 500
    judged: int = 2000
    data_seed: int = 0
    cache: Path = Path("runs/pictures")
    folds: int | None = None

    device: str = "auto"
    processes: int = 1
    threads: int | None = None

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's recipe that were given; all others keep the recipe's own value."""

    @property
    def folder(self) -> Path:
        """Return the folder of the run of this one model."""
        return self.out or Path("runs", self.model)

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> TrainOptions:
        """The options in `arguments`, by default those of this process. Exits with a message where they are wrong."""
        given = vars(make_parser().parse_args(arguments))
        own = {field.name for field in fields(cls)}
        recipe = {name: value for name, value in given.items() if name not in own and value is not None}
        rest = {name: value for name, value in given.items() if name in own}
        return cls(**rest, recipe=recipe)


def make_parser() -> argparse.ArgumentParser:
    """The command line. Options of the recipe that are not given are absent from what it parses, or None."""
    parser = argparse.ArgumentParser(prog="tuwen train", description=DESCRIPTION)
    parser.add_argument("model", choices=[*MODELS, "all"])
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the run; by default runs/MODEL, or runs for all models",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="stop after this many minutes; the same command continues the run",
    )
    parser.add_argument(
        "--ship",
        action="store_true",
        help="put the weights where the built-in engines look for them",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_recipe_options(parser.add_argument_group("recipe"))
    _add_machine_options(parser.add_argument_group("machine"))
    return parser


def _add_data_options(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data",
        help="your own pictures: a folder, a table, COCO's JSON, tars …; without it, models learn the drawn world",
    )
    data.add_argument(
        "--missing",
        choices=get_args(Missing),
        default="drop",
        help="what to do with an image that has no caption or no labels: leave it out (drop), let the describer write "
        "a caption (fill), or stop (fail); a broken image is left out, or stops the run (fail)",
    )
    data.add_argument("--root", help="folder that the paths in a table are relative to")
    data.add_argument("--image-column", help="column of a table that names the image")
    data.add_argument("--caption-column", help="column of a table that holds the caption")
    data.add_argument(
        "--pictures",
        type=int,
        help="number of training pictures to draw (20,000 by default), or the most of your own pictures to read",
    )
    data.add_argument("--checked", type=int, default=500, help="drawn pictures used for each validation")
    data.add_argument(
        "--judged",
        type=int,
        default=2000,
        help="drawn pictures of each split for the final figures",
    )
    data.add_argument("--data-seed", type=int, default=0, help="seed of the scenes that are drawn")
    data.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/pictures"),
        help="folder that keeps drawn pictures",
    )
    data.add_argument("--folds", type=int, help="cross-validate with this many parts of the data")


def _add_recipe_options(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--steps", type=int, help="number of steps of the whole run")
    recipe.add_argument("--batch", type=int, help="number of pictures in a batch")
    recipe.add_argument("--parts", type=int, help="number of batches in a step; by default one for each process")
    recipe.add_argument(
        "--optimizer",
        dest="optimiser",
        choices=get_args(OptimiserName),
        help="optimizer to use",
    )
    recipe.add_argument("--rate", dest="learning_rate", type=float, help="peak learning rate")
    recipe.add_argument(
        "--schedule",
        choices=get_args(Schedule),
        help="how the learning rate falls after the warm-up",
    )
    recipe.add_argument("--warmup", type=int, help="number of steps in which the learning rate rises")
    recipe.add_argument("--weight-decay", type=float, help="weight decay of matrices and kernels")
    recipe.add_argument("--dropout", type=float, help="probability in every dropout layer")
    recipe.add_argument("--ema", type=float, help="decay of the averaged weights")
    recipe.add_argument(
        "--patience",
        type=int,
        help="stop early after this many validations without a better one",
    )
    recipe.add_argument("--validate-every", type=int, help="number of steps between validations")
    recipe.add_argument(
        "--fp32",
        dest="bf16",
        action="store_false",
        default=None,
        help="train without mixed precision",
    )
    recipe.add_argument("--seed", type=int, default=0, help="seed of the weights and the batches")
    recipe.add_argument("--trunk", help="weights of the recogniser that describer and matcher take over")
    recipe.add_argument("--start", help="weights of the same model to start from")


def _add_machine_options(machine: argparse._ArgumentGroup) -> None:
    machine.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:1; by default the GPU where there is one",
    )
    machine.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of processes that share the work, one for each GPU (torchrun)",
    )
    machine.add_argument("--threads", type=int, help="processor threads of each process")
