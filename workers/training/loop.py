"""The one training loop of every supervised model: `train`.

A run lives in a folder and can be cut anywhere: killed, or ended by its time budget, the next call with the
same arguments goes on from the last checkpoint and reaches the same weights as a run that was never cut.
That holds because the batch of a step is a function of the step's number alone, and everything else that
changes (weights, average, optimiser, random state) is in the checkpoint.

    outcome = train(model, loss, batches, Recipe(steps=20_000), run=Path("runs/recogniser"), minutes=8)
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from shared.errors import ConfigurationError
from workers.training.checkpoint import load_checkpoint, save_checkpoint, save_weights, write_atomically

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Loss: TypeAlias = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the result of a run, besides its model and its data. Written beside the weights."""

    steps: int
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    warmup: int = 200
    """Steps of linear rise before the cosine."""
    floor: float = 0.01
    """Last learning rate as a share of the peak."""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    """First beta of Adam and AdamW, momentum of SGD."""
    second_momentum: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    ema: float = 0.999
    """Decay per step of the averaged weights, which are the ones validated and shipped."""
    bf16: bool = True
    """Mixed precision where the device is fast at it; see `autocast`."""
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    patience: int | None = None
    """Stop after this many validations in a row without a better one; None never stops early."""


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices and kernels; none on biases, norms and embeddings, where it only pulls towards zero."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    groups = parameter_groups(model, recipe.weight_decay)
    betas = (recipe.momentum, recipe.second_momentum)
    match recipe.optimiser:
        case "adamw":
            return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.learning_rate, betas=betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to `floor` at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    share = recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * progress)) / 2
    return recipe.learning_rate * share


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def random_state(device: torch.device) -> dict[str, Any]:
    """What dropout draws from next."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def command() -> str:
    """The command that this process runs, as it is given again."""
    return shlex.join(["python", "-m", "workers.training", *sys.argv[1:]])


def facts(model: nn.Module, recipe: Any, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    """What is written beside weights: enough to know where they come from and to make them again."""
    return {
        "config": asdict(recipe),
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "metrics": outcome.metrics,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
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
    `validation`, or else the last ones), `progress.jsonl` (a line per log and validation) and a checkpoint.
    The caller seeds torch before constructing the model; the loop seeds what training itself draws.

    Args:
        loss: of (model, batch): a scalar to minimise, and figures to log. Runs under bf16 autocast.
        batches: the batch of a step, on `device`, made from nothing but the step's number (0, 1, …).
            Under data parallelism each rank makes its own share of the step's batch.
        minutes: stop after this time and keep a checkpoint; None runs to the end.

    Raises:
        ConfigurationError: the loss is not finite, or the checkpoint is of another recipe.
    """
    training = _Training(model, recipe, run, torch.device(device))
    outcome = training.outcome
    start, earlier = clock(), outcome.seconds
    spent = False
    while not (outcome.finished or spent):
        figures = training.step(loss, batches(outcome.step))
        elapsed = clock() - start
        outcome.seconds = earlier + elapsed
        spent = minutes is not None and elapsed >= minutes * 60
        last = outcome.step == recipe.steps
        if last or outcome.step % recipe.log_every == 0:
            training.log({name: figure.item() for name, figure in figures.items()})
        if last or outcome.step % recipe.validate_every == 0:
            training.validate(validation)
            outcome.finished = last or (recipe.patience is not None and outcome.waited >= recipe.patience)
        if spent or outcome.finished or outcome.step % recipe.checkpoint_every == 0:
            training.checkpoint()
    return outcome


class _Training:
    """Everything of a run that changes from step to step."""

    def __init__(self, model: nn.Module, recipe: Recipe, run: Path, device: torch.device):
        self.model, self.recipe, self.run, self.device = model.to(device).train(), recipe, run, device
        self.average = Average(model, recipe.ema)
        self.optimiser = make_optimiser(model, recipe)
        self.outcome = Outcome()
        torch.manual_seed(recipe.seed)
        if (state := load_checkpoint(run, device)) is not None:
            self._restore(state)
        self.progress = Progress(run, self.outcome.step)

    def step(self, loss: Loss[Batch], batch: Batch) -> dict[str, Tensor]:
        set_learning_rate(self.optimiser, learning_rate(self.outcome.step, self.recipe))
        with autocast(self.device, self.recipe.bf16):
            value, figures = loss(self.model, batch)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not torch.isfinite(norm):
            raise ConfigurationError(f"Training diverged at step {self.outcome.step}: try a lower learning rate.")
        self.optimiser.step()
        self.average.update(self.model)
        self.outcome.step += 1
        return {"loss": value, **figures}

    def log(self, figures: Mapping[str, float]) -> None:
        self.progress.write(self.outcome.step, figures, self.outcome.seconds)

    @torch.no_grad()
    def validate(self, validation: Validation | None) -> None:
        """Keeps the averaged weights when they are the best so far, or when nothing can tell."""
        if validation is None:
            return self._keep({})
        with autocast(self.device, self.recipe.bf16):
            figures = dict(validation.figures(self.average.model))
        self.log(figures)
        self.outcome.waited += 1
        if validation.better(figures[validation.metric], self.outcome.best):
            self.outcome.best, self.outcome.waited = figures[validation.metric], 0
            self._keep(figures)
        return None

    def _keep(self, figures: Mapping[str, float]) -> None:
        self.outcome.metrics, self.outcome.kept_step = dict(figures), self.outcome.step
        about = facts(self.model, self.recipe, self.outcome, self.device)
        save_weights(self.run / "weights.safetensors", self.average.model.state_dict(), about)

    def checkpoint(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"recipe": asdict(self.recipe), "outcome": asdict(self.outcome)}
        save_checkpoint(self.run, self.outcome.step, state | {"random": random_state(self.device)})

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["recipe"] != asdict(self.recipe):
            raise ConfigurationError(f"{self.run} holds a run of another recipe: delete it or choose another folder.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.outcome = Outcome(**state["outcome"])
        restore_random_state(state["random"], self.device)
        log.info("going on from step %d of %d", self.outcome.step, self.recipe.steps)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "optimiser": self.optimiser}


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed precision in bfloat16, unless the processor would only emulate it (then it is several times slower)."""
    native = device.type != "cpu" or any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and bool(native))


class Progress:
    """Figures of a run over time: a log line for people, and `progress.jsonl` for curves."""

    def __init__(self, run: Path, step: int):
        """Drops what a killed process wrote after the checkpoint at `step`: it will be written again."""
        self.path = run / "progress.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **figures}) + "\n")
        shown = "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
        log.info("step %d  %.0f s  %s", step, seconds, shown)
