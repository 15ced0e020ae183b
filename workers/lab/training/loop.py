"""The one training loop of every supervised model: `train`.

A run lives in a folder and can be interrupted at any moment. Where it was killed, or ended by its time budget, the next
call with the same arguments continues from the last checkpoint and reaches the same weights as a run without a break.
That holds because batches and random numbers of a step are functions of its number alone, and everything else
that changes (weights, average, optimiser) is in the checkpoint. The weights are the same bit for bit on a processor; on
a GPU they are as far as its kernels are deterministic.

    outcome = train(model, loss, batches, Recipe(steps=20_000), run=Path("runs/recogniser"), minutes=8)
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from workers.lab.training.loading import load
from workers.lab.training.progress import TrainingLog
from workers.lab.training.recipe import (
    Recipe,
    learning_rate,
    make_optimiser,
    set_dropout,
    set_learning_rate,
)

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Loss: TypeAlias = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Validation:
    """How a model is measured while it trains, and which figure decides what is kept."""

    figures: Callable[[nn.Module], Mapping[str, float]]
    """Measures the averaged model, which is in eval mode, under autocast and without gradients."""
    metric: str
    """The key of the figure that decides."""
    higher: bool = True
    """Whether more of it is better."""

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether the value is better than the best one so far, if there is one."""
        if best is None:
            return True
        return value > best if self.higher else value < best


@dataclass(slots=True)
class Outcome:
    """How far a run got."""

    step: int = 0
    finished: bool = False
    """All steps done or stopped early; False when the time budget ended first."""
    best: float | None = None
    """The deciding figure of the kept weights."""
    kept_step: int = 0
    """Step of the kept weights."""
    waited: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Training time over all slices."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What validation said of the kept weights."""


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a model's weights, in eval mode and without gradients; buffers are copied.

    The decay rises as (1 + n) / (10 + n) with the number n of updates to its full value, so that the random start does
    not dominate early averages.
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        rising = (1 + count) / (10 + count)
        average_into = get_ema_multi_avg_fn(min(decay, rising))  # type: ignore[no-untyped-call]
        average_into(averages, weights, updates)

    average = AveragedModel(model, multi_avg_fn=update)
    # The start counts as the first of the averaged weights. Otherwise the first update would replace it.
    average.n_averaged.fill_(1)
    return average.eval().requires_grad_(False)


def command() -> str:
    """The command that this process runs, for somebody who wants to give it again."""
    return shlex.join(["python", "-m", "workers.lab.training", *sys.argv[1:]])


def describe_run(model: nn.Module, recipe: Recipe, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    """What is written beside weights: enough to know where they come from and to train them again."""
    return {
        "config": asdict(recipe),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "metrics": outcome.metrics,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processes": distributed.size(),
        "seconds": round(outcome.seconds, 1),
        "seed": recipe.seed,
        "step": outcome.kept_step,
        "torch": torch.__version__,
    }


def train(
    model: nn.Module,
    loss: Loss[Batch],
    batches: Callable[[int], Batch],
    recipe: Recipe,
    run: Path,
    *,
    validation: Validation | None = None,
    minutes: float | None = None,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Trains `model` in place, and continues from the checkpoint in `run` where there is one.

    Leaves in `run`: `weights.safetensors` and `weights.json` (the averaged weights: the best ones by
    `validation`, the last ones without it), `progress.jsonl` (a line per log and validation), `curves.png` and a
    checkpoint. The caller seeds torch before constructing the model; the loop seeds what training itself draws.

    Args:
        loss: from (model, batch) to a scalar to minimise, and figures to log. Runs under bf16 autocast.
        batches: makes the batch with a number (0, 1, …) on the processor, from nothing but that number. Step s takes
            the numbers from s · recipe.parts; where there are several processes, each makes its own share of them.
        minutes: stop after this time and keep a checkpoint; None runs to the end.

    Raises:
        ConfigurationError: the loss is not finite, or the checkpoint is of another recipe.
    """
    training = _Training(model, loss, recipe, run, torch.device(device))
    outcome = training.outcome
    earlier = outcome.seconds
    start = clock()
    spent = False
    with training.log, closing(load(batches, training.numbers(), training.device)) as feed:
        while not (outcome.finished or spent):
            figures = training.step(feed)
            elapsed = clock() - start
            outcome.seconds = earlier + elapsed
            spent = minutes is not None and distributed.broadcast(elapsed >= minutes * 60)
            last = outcome.step == recipe.steps
            if last or outcome.step % recipe.log_every == 0:
                training.write(_gather_means(figures))
            if last or outcome.step % recipe.validate_every == 0:
                training.validate(validation)
                impatient = recipe.patience is not None and outcome.waited >= recipe.patience
                outcome.finished = last or impatient
            if spent or outcome.finished or outcome.step % recipe.checkpoint_every == 0:
                training.save_checkpoint()
    # What the first process wrote may be read by all as soon as this returns.
    distributed.wait()
    return outcome


def add_up(losses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of several losses, and each of them as a figure to log."""
    figures = {name: loss.detach() for name, loss in losses.items()}
    return torch.stack(list(losses.values())).sum(), figures


def _gather_means(figures: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each figure over those parts of a step, in all processes, that have it.

    Some figures depend on what a batch happens to hold.
    """
    mine = [{name: figure.item() for name, figure in part.items()} for part in figures]
    values: dict[str, list[float]] = {}
    for parts in distributed.gather(mine):
        for part in parts:
            for name, value in part.items():
                values.setdefault(name, []).append(value)
    return {name: float(np.mean(each)) for name, each in values.items()}


class _Objective(nn.Module, Generic[Batch]):
    """The loss as a module, to be run in parallel as a whole: losses call more of a model than its `forward`."""

    def __init__(self, model: nn.Module, loss: Loss[Batch]):
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.loss(self.model, batch)


class _Statistics:
    """The buffers that a step's parts change, such as those of batch norm: each part starts from the same ones, and
    the step leaves their mean, so that it does not matter which process ran which part."""

    def __init__(self, model: nn.Module, parts: int):
        self.buffers = list(model.buffers()) if parts > 1 else []
        self.before = [buffer.clone() for buffer in self.buffers]
        self.after: list[list[Tensor]] = []

    def collect(self) -> None:
        """Keeps what a part left in the buffers, and resets them for the next part."""
        self.after.append([buffer.clone() for buffer in self.buffers])
        self._set(self.before)

    def merge(self) -> None:
        """Leaves the mean over all parts of all processes in the buffers."""
        parts = [torch.stack(values).double() for values in zip(*self.after, strict=True)]
        self._set([part.mean(0) for part in parts])
        distributed.average(self.buffers)

    def _set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)


class _Training(Generic[Batch]):
    """Everything of a run that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss[Batch],
        recipe: Recipe,
        run: Path,
        device: torch.device,
    ):
        if recipe.parts % distributed.size():
            raise ConfigurationError(
                f"{recipe.parts} parts of a step cannot be shared by {distributed.size()} processes: "
                f"give --parts {distributed.size()}, or a multiple of it.",
                field="parts",
            )
        self.model = model.to(device).train()
        self.recipe = recipe
        self.run = run
        self.device = device
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.dropout is not None:
            set_dropout(model, recipe.dropout)
        self.average = make_average(model, recipe.ema)
        self.optimiser = make_optimiser(model, recipe)
        self.outcome = Outcome()
        state = load_checkpoint(run, device)
        if state is not None:
            self._restore(state)
        distributed.wait()
        self.objective = distributed.parallelise(_Objective(model, loss), device)
        self.parts = range(distributed.rank(), recipe.parts, distributed.size())
        self.log = TrainingLog(run, self.outcome.step, recipe.steps, run.name)

    def numbers(self) -> Iterator[int]:
        """Numbers of the batches that this process takes, from the present step on."""
        for step in range(self.outcome.step, self.recipe.steps):
            yield from (step * self.recipe.parts + part for part in self.parts)

    def step(self, feed: Iterator[Batch]) -> list[dict[str, Tensor]]:
        """Takes one step of the optimiser; returns the figures of each of its parts that this process ran."""
        set_learning_rate(self.optimiser, learning_rate(self.outcome.step, self.recipe))
        self.optimiser.zero_grad(set_to_none=True)
        statistics = _Statistics(self.model, self.recipe.parts)
        found = []
        for part in self.parts:
            self._seed(part)
            with self._exchange(part):
                with autocast(self.device, self.recipe.bf16):
                    value, figures = self.objective(next(feed))
                torch.autograd.backward(value / len(self.parts))
            statistics.collect()
            found.append({"loss": value.detach(), **figures})
        statistics.merge()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not torch.isfinite(norm):
            raise ConfigurationError(f"Training diverged at step {self.outcome.step}: try a lower learning rate.")
        self.optimiser.step()
        self.average.update_parameters(self.model)
        self.outcome.step += 1
        self.log.advance(self.outcome.step)
        return found

    def _seed(self, part: int) -> None:
        """Makes what dropout draws depend on seed, step and part alone, so that a continued run draws the same."""
        sequence = np.random.SeedSequence([self.recipe.seed, self.outcome.step, part])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _exchange(self, part: int) -> AbstractContextManager[None]:
        """The context of one part: gradients are exchanged between processes once a step, with the last part."""
        if isinstance(self.objective, DistributedDataParallel) and part != self.parts[-1]:
            exchange: AbstractContextManager[None] = self.objective.no_sync()
            return exchange
        return nullcontext()

    def write(self, figures: Mapping[str, float]) -> None:
        """Writes figures of the present step to the log."""
        self.log.write(self.outcome.step, figures, self.outcome.seconds)

    def validate(self, validation: Validation | None) -> None:
        """Keeps the averaged weights when they are the best so far, or when nothing can tell."""
        if validation is None:
            self._keep({})
            return
        # The others wait here for the first one.
        figures = distributed.broadcast(self._measure(validation) if distributed.is_first() else {})
        self.write(figures)
        self.outcome.waited += 1
        value = figures[validation.metric]
        if validation.is_better(value, self.outcome.best):
            self.outcome.best = value
            self.outcome.waited = 0
            self._keep(figures)

    @torch.no_grad()
    def _measure(self, validation: Validation) -> dict[str, float]:
        with autocast(self.device, self.recipe.bf16):
            return dict(validation.figures(self.average.module))

    def _keep(self, figures: Mapping[str, float]) -> None:
        """Writes the averaged weights, with these figures beside them."""
        self.outcome.metrics = dict(figures)
        self.outcome.kept_step = self.outcome.step
        if distributed.is_first():
            about = describe_run(self.model, self.recipe, self.outcome, self.device)
            save_weights(self.run / "weights.safetensors", self.average.module.state_dict(), about)

    def save_checkpoint(self) -> None:
        """Writes all that a continued run needs; only the first process does."""
        if distributed.is_first():
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state |= {"recipe": asdict(self.recipe), "outcome": asdict(self.outcome)}
            save_checkpoint(self.run, self.outcome.step, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if not self.recipe.equals(state["recipe"]):
            raise ConfigurationError(f"{self.run} holds a run of another recipe: delete it or choose another folder.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name] if name != "average" else _average_state(state[name]))
        self.outcome = Outcome(**state["outcome"])
        log.info("continuing from step %d of %d", self.outcome.step, self.recipe.steps)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimiser": self.optimiser}


def _average_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged weights of a checkpoint, also of one that version 0.1 wrote in its own form."""
    if "updates" not in state:
        return dict(state)
    weights = {f"module.{name}": weight for name, weight in state["model"].items()}
    return {"n_averaged": torch.tensor(state["updates"] + 1), **weights}


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed precision in bfloat16, unless the processor would only emulate it (then it is several times slower)."""
    enabled = wanted and (device.type != "cpu" or _processor_knows_bfloat16())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _processor_knows_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
