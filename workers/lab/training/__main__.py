"""Train the built-in models: `tuwen train recognizer --minutes 10`, or `python -m workers.lab.training recognizer …`.

A run that was cut, by its time budget or otherwise, goes on when the same command is given again. `all` trains one
model after the other. Without --data they learn from the drawn world, else from own pictures.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import get_args

import torch
from rich.logging import RichHandler

from tuwen.errors import TuwenError
from workers.lab.training import (
    distributed,
)
from workers.lab.training.drawn import train_drawn
from workers.lab.training.own.data import Missing
from workers.lab.training.own.runs import train_own
from workers.lab.training.progress import console
from workers.lab.training.recipe import OptimiserName, Schedule
from workers.lab.training.runs import RECIPES, each

log = logging.getLogger("workers.lab.training")


def parser() -> argparse.ArgumentParser:
    """The command line; what is not given there is the recipe's own."""
    made = argparse.ArgumentParser(prog="tuwen train", description=__doc__)
    made.add_argument("model", choices=[*RECIPES, "all"])
    made.add_argument("--out", type=Path, help="the run's folder; by default runs/MODEL, or runs for all")
    made.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    made.add_argument("--ship", action="store_true", help="put the weights where the built-in engines find them")

    data = made.add_argument_group("data")
    data.add_argument("--data", help="own pictures: a folder, a table, COCO's JSON, tars …; else the drawn world")
    data.add_argument("--missing", choices=get_args(Missing), default="drop",
                      help="images without a caption or labels: leave out, let the describer fill in, or stop; "
                      "broken images are left out or stop the run")  # fmt: skip
    data.add_argument("--root", help="folder that the paths in a table start from")
    data.add_argument("--image-column", help="of a table")
    data.add_argument("--caption-column", help="of a table")
    data.add_argument("--pictures", type=int, help="training pictures to draw (20,000), or own ones to read at most")
    data.add_argument("--checked", type=int, default=500, help="drawn pictures of each validation")
    data.add_argument("--judged", type=int, default=2000, help="drawn pictures of each split in the final figures")
    data.add_argument("--data-seed", type=int, default=0)
    data.add_argument("--cache", type=Path, default=Path("runs/pictures"), help="where drawn pictures are kept")
    data.add_argument("--folds", type=int, help="cross-validate with so many parts")

    recipe = made.add_argument_group("recipe")
    recipe.add_argument("--steps", type=int, help="length of the whole run")
    recipe.add_argument("--batch", type=int, help="pictures of a batch")
    recipe.add_argument("--parts", type=int, help="batches of a step; by default one for each process")
    recipe.add_argument("--optimizer", dest="optimiser", choices=get_args(OptimiserName))
    recipe.add_argument("--rate", dest="learning_rate", type=float, help="peak learning rate")
    recipe.add_argument("--schedule", choices=get_args(Schedule), help="of the learning rate, after the warm-up")
    recipe.add_argument("--warmup", type=int, help="steps")
    recipe.add_argument("--weight-decay", type=float)
    recipe.add_argument("--dropout", type=float, help="in all dropout layers")
    recipe.add_argument("--ema", type=float, help="decay of the averaged weights")
    recipe.add_argument("--patience", type=int, help="validations without a better one before it stops early")
    recipe.add_argument("--validate-every", type=int, help="steps")
    recipe.add_argument("--fp32", dest="bf16", action="store_false", default=None, help="no mixed precision")
    recipe.add_argument("--seed", type=int, default=0, help="of weights and batches")
    recipe.add_argument("--trunk", help="recogniser's weights whose encoder describer and matcher take over")
    recipe.add_argument("--start", help="weights of the same model to start from")

    machine = made.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; by default the GPU where there is one")
    machine.add_argument("--processes", type=int, default=1, help="that share the work, one for each GPU (torchrun)")
    machine.add_argument("--threads", type=int, help="of the processor, for each process")
    return made


def main() -> int:
    options = parser().parse_args()
    if options.processes > 1 and "WORLD_SIZE" not in os.environ:
        relaunch(options.processes)
    handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    plain = logging.StreamHandler()
    logging.basicConfig(
        level=logging.INFO if distributed.leads() else logging.WARNING,
        format="%(message)s" if console.is_terminal else "%(asctime)s %(message)s",
        handlers=[handler if console.is_terminal else plain],
    )
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(options.threads or max(1, share))
    device = torch.device(_device() if options.device == "auto" else options.device)
    if device.type == "cuda":
        # Matrices in TF32 where bfloat16 is not used; convolutions as measured fastest for these fixed sizes.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        with distributed.group(device) as mine:
            options.device = str(mine)
            run(options)
    except TuwenError as error:
        log.error("%s: %s", error.code, error)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """One model, or all of them in the time there is."""
    start = time.monotonic()
    for mine in each(options):
        if options.minutes is not None:
            mine.minutes = max(0.0, options.minutes - (time.monotonic() - start) / 60)
        finished = train_own(mine) if mine.data else train_drawn(mine)
        if not finished:
            log.info("%s is not finished: give the same command again to go on", mine.model)
            break


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def relaunch(processes: int) -> None:
    """The same command by so many processes of this host."""
    os.environ["PYTHONSAFEPATH"] = "1"  # here and in what it starts: a folder of the user's must not hide ours
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    os.execv(sys.executable, [*torchrun, "-m", "workers.lab.training", *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
