"""`python -m workers.lab.training recognizer …`: what the command `tuwen train` runs."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace

import torch
from rich.logging import RichHandler

from tuwen.errors import TuwenError
from workers.lab.training import (
    distributed,
)
from workers.lab.training.drawn import train_drawn
from workers.lab.training.options import TrainOptions
from workers.lab.training.own.runs import train_own
from workers.lab.training.progress import console
from workers.lab.training.runs import options_of_each

log = logging.getLogger("workers.lab.training")


def main() -> int:
    """Trains what the command line asks for; the exit status."""
    options = TrainOptions.parse()
    if options.processes > 1 and "WORLD_SIZE" not in os.environ:
        relaunch(options.processes)
    _set_up_logging()
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(options.threads or max(1, share))
    device = torch.device(_best_device() if options.device == "auto" else options.device)
    if device.type == "cuda":
        # Matrices in TF32 where bfloat16 is not used; convolutions as measured fastest for these fixed sizes.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    try:
        with distributed.join(device) as mine:
            run(replace(options, device=str(mine)))
    except TuwenError as error:
        log.error("%s: %s", error.code, error)
        return 1
    return 0


def _set_up_logging() -> None:
    """Logs beside the progress bar on a terminal, with the time elsewhere; only the first process logs its steps."""
    terminal = console.is_terminal
    handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
    logging.basicConfig(
        level=logging.INFO if distributed.will_be_first() else logging.WARNING,
        format="%(message)s" if terminal else "%(asctime)s %(message)s",
        handlers=[handler if terminal else logging.StreamHandler()],
    )


def run(options: TrainOptions) -> None:
    """Trains one model, or all of them, in the time there is. `options.device` names a device, it is not "auto"."""
    start = time.monotonic()
    for mine in options_of_each(options):
        if options.minutes is not None:
            spent = (time.monotonic() - start) / 60
            mine = replace(mine, minutes=max(0.0, options.minutes - spent))
        finished = train_own(mine) if mine.data else train_drawn(mine)
        if not finished:
            log.info("%s is not finished: give the same command again to continue", mine.model)
            break


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def relaunch(processes: int) -> None:
    """Replace this process by torchrun, which runs the same command in several processes of this host."""
    os.environ["PYTHONSAFEPATH"] = "1"  # here and in what it starts: a folder of the user's must not hide ours
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    os.execv(sys.executable, [*torchrun, "-m", "workers.lab.training", *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
