"""The one training loop of every supervised model: `train`.

A run lives in a folder and can be cut anywhere: killed, or ended by its time budget, the next call with the
same arguments goes on from the last checkpoint and reaches the same weights as a run that was never cut.
That holds because batches and random numbers of a step are functions of its number alone, and everything else
that changes (weights, average, optimiser) is in the checkpoint. Bit for bit on a processor; on a GPU as far as its
kernels repeat themselves.

    outcome = train(model, loss, batches, Recipe(steps=20_000), run=Path("runs/recogniser"), minutes=8)
"""

from __future__ import annotations

import copy
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

from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from workers.lab.training.loading import load
from workers.lab.training.progress import Progress
from workers.lab.training.recipe import Recipe, learning_rate, make_optimiser, set_dropout, set_learning_rate

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Loss: TypeAlias = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Validation:
    """How a model is judged while it trains, and which figure decides what is kept."""

    figures: Callable[[nn.Module], Mapping[str, float]]
    """Of the averaged model, which is in eval mode, under autocast and without gradients."""
    metric: str
    """The deciding key of `figures`."""
    higher: bool = True
    """Whether more of it is better."""

    def better(self, value: float, best: float | None) -> bool:
        return best is None or (value > best if self.higher else value < best)


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


class Average:
    """Exponential moving average of a model's weights; buffers are copied.

    The decay rises as (1 + n) / (10 + n) to its full value, so that early averages are not dominated by
    the random start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def command() -> str:
    """The command that this process runs, as it is given again."""
    return shlex.join(["python", "-m", "workers.lab.training", *sys.argv[1:]])


def facts(model: nn.Module, recipe: Any, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    """What is written beside weights: enough to know where they come from and to make them again."""
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
    """Trains `model` in place, going on from the checkpoint in `run` where there is one.

    Leaves in `run`: `weights.safetensors` and `weights.json` (the averaged weights: the best ones by
    `validation`, or else the last ones), `progress.jsonl` (a line per log and validation), `curves.png` and a
    checkpoint. The caller seeds torch before constructing the model; the loop seeds what training itself draws.

    Args:
        loss: of (model, batch): a scalar to minimise, and figures to log. Runs under bf16 autocast.
        batches: the batch with a number (0, 1, …), made from nothing but that, on the processor. Step s takes the
            numbers from s · recipe.parts; where there are several processes, each makes its own share of them.
        minutes: stop after this time and keep a checkpoint; None runs to the end.

    Raises:
        ConfigurationError: the loss is not finite, or the checkpoint is of another recipe.
    """
    training = _Training(model, loss, recipe, run, torch.device(device))
    outcome = training.outcome
    start, earlier = clock(), outcome.seconds
    spent = False
    with training.progress, closing(load(batches, training.numbers(), training.device)) as feed:
        while not (outcome.finished or spent):
            figures = training.step(feed)
            elapsed = clock() - start
            outcome.seconds = earlier + elapsed
            spent = minutes is not None and distributed.agreed(elapsed >= minutes * 60)
            last = outcome.step == recipe.steps
            if last or outcome.step % recipe.log_every == 0:
                training.log(_means([part for parts in distributed.gathered(_numbers(figures)) for part in parts]))
            if last or outcome.step % recipe.validate_every == 0:
                training.validate(validation)
                outcome.finished = last or (recipe.patience is not None and outcome.waited >= recipe.patience)
            if spent or outcome.finished or outcome.step % recipe.checkpoint_every == 0:
                training.checkpoint()
    # What the first process wrote may be read by all as soon as this returns.
    distributed.wait()
    return outcome


def _numbers(figures: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    return [{name: figure.item() for name, figure in part.items()} for part in figures]


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure over those parts of a step that have it: some depend on what a batch happens to hold."""
    names = dict.fromkeys(name for part in figures for name in part)
    return {name: float(np.mean([part[name] for part in figures if name in part])) for name in names}


class _Objective(nn.Module, Generic[Batch]):
    """The loss as a module, to be run in parallel as a whole: losses call more of a model than its `forward`."""

    def __init__(self, model: nn.Module, loss: Loss[Batch]):
        super().__init__()
        self.model, self.loss = model, loss

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
        self.after.append([buffer.clone() for buffer in self.buffers])
        self._set(self.before)

    def merge(self) -> None:
        self._set([torch.stack(list(values)).double().mean(0) for values in zip(*self.after, strict=True)])
        distributed.average(self.buffers)

    def _set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)


class _Training(Generic[Batch]):
    """Everything of a run that changes from step to step."""

    def __init__(self, model: nn.Module, loss: Loss[Batch], recipe: Recipe, run: Path, device: torch.device):
        if recipe.parts % distributed.size():
            raise ConfigurationError(
                f"{recipe.parts} parts of a step cannot be shared by {distributed.size()} processes: "
                f"give --parts {distributed.size()}, or a multiple of it.",
                field="parts",
            )
        self.model, self.recipe, self.run, self.device = model.to(device).train(), recipe, run, device
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if recipe.dropout is not None:
            set_dropout(model, recipe.dropout)
        self.average = Average(model, recipe.ema)
        self.optimiser = make_optimiser(model, recipe)
        self.outcome = Outcome()
        if (state := load_checkpoint(run, device)) is not None:
            self._restore(state)
        distributed.wait()
        self.objective = distributed.parallel(_Objective(model, loss), device)
        self.parts = range(distributed.rank(), recipe.parts, distributed.size())
        self.progress = Progress(run, self.outcome.step, recipe.steps, run.name)

    def numbers(self) -> Iterator[int]:
        """Of the batches that this process takes, from the present step on."""
        for step in range(self.outcome.step, self.recipe.steps):
            yield from (step * self.recipe.parts + part for part in self.parts)

    def step(self, feed: Iterator[Batch]) -> list[dict[str, Tensor]]:
        """One step of the optimiser; the figures of each of its parts that this process ran."""
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
        self.average.update(self.model)
        self.outcome.step += 1
        self.progress.advance(self.outcome.step)
        return found

    def _seed(self, part: int) -> None:
        """What dropout draws depends on seed, step and part alone, so a run that goes on needs to know no more."""
        sequence = np.random.SeedSequence([self.recipe.seed, self.outcome.step, part])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def _exchange(self, part: int) -> AbstractContextManager[None]:
        """Gradients are exchanged once a step, with the last part."""
        if isinstance(self.objective, DistributedDataParallel) and part != self.parts[-1]:
            exchange: AbstractContextManager[None] = self.objective.no_sync()
            return exchange
        return nullcontext()

    def log(self, figures: Mapping[str, float]) -> None:
        self.progress.write(self.outcome.step, figures, self.outcome.seconds)

    def validate(self, validation: Validation | None) -> None:
        """Keeps the averaged weights when they are the best so far, or when nothing can tell."""
        if validation is None:
            return self._keep({})
        # The others wait here for the first one.
        figures = distributed.agreed(self._judge(validation) if distributed.first() else {})
        self.log(figures)
        self.outcome.waited += 1
        if validation.better(figures[validation.metric], self.outcome.best):
            self.outcome.best, self.outcome.waited = figures[validation.metric], 0
            self._keep(figures)
        return None

    @torch.no_grad()
    def _judge(self, validation: Validation) -> dict[str, float]:
        with autocast(self.device, self.recipe.bf16):
            return dict(validation.figures(self.average.model))

    def _keep(self, figures: Mapping[str, float]) -> None:
        self.outcome.metrics, self.outcome.kept_step = dict(figures), self.outcome.step
        if distributed.first():
            about = facts(self.model, self.recipe, self.outcome, self.device)
            save_weights(self.run / "weights.safetensors", self.average.model.state_dict(), about)

    def checkpoint(self) -> None:
        if distributed.first():
            state = {name: part.state_dict() for name, part in self._parts().items()}
            state |= {"recipe": asdict(self.recipe), "outcome": asdict(self.outcome)}
            save_checkpoint(self.run, self.outcome.step, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if not self.recipe.equals(state["recipe"]):
            raise ConfigurationError(f"{self.run} holds a run of another recipe: delete it or choose another folder.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.outcome = Outcome(**state["outcome"])
        log.info("going on from step %d of %d", self.outcome.step, self.recipe.steps)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimiser": self.optimiser}


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed precision in bfloat16, unless the processor would only emulate it (then it is several times slower)."""
    native = device.type != "cpu" or any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and bool(native))
