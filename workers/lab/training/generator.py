"""Training the generator: its planner on captions, its painter on pictures of the drawn world.

The painter learns in two phases. First by *reconstruction*: the noise that varied a training picture is known, so the
painter can be told what to draw, which is far cheaper than learning it from a critic alone. Then a discriminator joins
in, for the sharpness that averages of pixel errors do not ask for.

    data, validation = draw_pictures("train", 20_000), draw_pictures("validation", 500)
    train_generator(data, validation, Path("runs/generator"), minutes=30)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softplus

from tuwen.jobs import Language, Style
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.data import Pictures, cut, to_tensor
from workers.lab.training.loop import Loss, Outcome, Validation, add_up, command, train
from workers.lab.training.recipe import Recipe
from workers.lab.training.recognizer import figures as recognition_figures
from workers.lab.training.trainable import Trainable
from workers.lab.world.latents import BACKGROUND_SIZE, INSTANCE_SIZE, latents
from workers.models.discriminator import Discriminator
from workers.models.generator import Generator, Painter, Planner, Shape
from workers.models.recognizer import Recognizer
from workers.models.text import Vocabulary, vocabulary
from workers.scenes.grammar import (
    ANIMALS,
    SLOT_SIZES,
    Scene,
    Split,
    caption,
    pick,
    sample_scene,
    slots,
)
from workers.scenes.lexicon import KEYS

LANGUAGES: tuple[Language, ...] = ("zh", "en")
STYLES: tuple[Style, ...] = ("short", "detailed", "tags")


class Texts(NamedTuple):
    """Captions and what they describe."""

    tokens: Tensor
    """(B, L)"""
    plan: Tensor
    """(B, columns)"""


class Paintings(NamedTuple):
    """Pictures and what they were drawn from."""

    plan: Tensor
    """(B, columns)"""
    noise: Tensor
    """(B, noise)"""
    pictures: Tensor
    """(B, 3, 64, 64) in [-1, 1]"""


# ── planner ───────────────────────────────────────────────────────────────────────────────────────


def texts(size: int, seed: int) -> Callable[[int], Texts]:
    """Batches of captions in both languages, half of them leaving things out as people do.

    A batch is of one style, so that its texts are about equally long.
    """

    def batch(step: int) -> Texts:
        rng = np.random.default_rng((seed, step))
        scenes = [sample_scene(rng, "train") for _ in range(size)]
        style = pick(rng, STYLES)
        captions = []
        for scene in scenes:
            language = pick(rng, LANGUAGES)
            omit = pick(rng, (0.0, 0.4))
            captions.append(caption(scene, language, style, rng, omit=omit))
        return _to_tensors(captions, scenes)

    return batch


def plans_of(scenes: Sequence[Scene]) -> Tensor:
    """The plans that scenes are drawn from, int64 (scenes, columns)."""
    return torch.from_numpy(np.stack([slots(scene) for scene in scenes]))


def _to_tensors(captions: list[str], scenes: list[Scene], device: torch.device | str = "cpu") -> Texts:
    tokens = torch.from_numpy(vocabulary().encode_batch(captions))
    return Texts(tokens.to(device), plans_of(scenes).to(device))


def plan_loss(planner: nn.Module, batch: Texts) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Negative log-likelihood of the plan, in nats a picture."""
    logits = planner(batch.tokens, batch.plan)
    losses = [cross_entropy(column, wanted) for column, wanted in zip(logits, batch.plan.unbind(1), strict=True)]
    return torch.stack(losses).sum(), {}


def plan_accuracy(planner: Planner, split: Split, count: int, seed: int, device: torch.device | str = "cpu") -> float:
    """Share of captions that leave nothing out whose sampled plan is right in every column.

    Only standing still is never said: of an animal whose caption names no action any action is right.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split) for _ in range(count)]
    captions = [caption(scene, pick(rng, LANGUAGES), pick(rng, STYLES[1:]), rng) for scene in scenes]
    tokens, plans = _to_tensors(captions, scenes, device)
    draws = torch.from_numpy(rng.random(plans.shape, dtype=np.float32)).to(device)
    right = planner.sample(tokens, draws) == plans
    animals = torch.tensor([KEYS["object"].index(animal) + 1 for animal in ANIMALS], device=plans.device)
    for object_, action in ((0, 2), (5, 7)):
        unsaid = plans[:, action] == 0
        animal = torch.isin(plans[:, object_], animals)
        right[:, action] |= unsaid & animal
    return right.all(1).float().mean().item()


# ── painter ───────────────────────────────────────────────────────────────────────────────────────


def paintings(data: Pictures, size: int, seed: int) -> Callable[[int], Paintings]:
    """Batches of pictures with the plan and the noise that they were drawn from."""
    plans = plans_of(data.scenes)
    noise = noise_of(data.scenes)

    def batch(step: int) -> Paintings:
        rng = np.random.default_rng((seed, step))
        rows = np.sort(rng.integers(len(data), size=size))
        return Paintings(plans[rows], noise[rows], to_tensor(data.pixels[rows]))

    return batch


def noise_of(scenes: Sequence[Scene]) -> Tensor:
    """The noise that varied the pictures of scenes, float (scenes, noise)."""
    return torch.from_numpy(np.stack([latents(scene) for scene in scenes]))


def reconstruction(painted: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute and squared errors of pixels, and absolute errors of their differences, which make edges.

    Both arguments are (B, 3, H, W) in [-1, 1].
    """
    error = painted - pictures
    loss = error.abs().mean() + 4 * error.square().mean()
    for distance in (1, 2):
        across = error[..., distance:] - error[..., :-distance]
        down = error[..., distance:, :] - error[..., :-distance, :]
        loss = loss + 0.5 * across.abs().mean()
        loss = loss + 0.5 * down.abs().mean()
    return loss


def painting_loss(painter: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The reconstruction of pictures from their plans and noise."""
    painted = painter(batch.plan, batch.noise)
    error = (painted - batch.pictures).detach()
    return reconstruction(painted, batch.pictures), {"pixels": error.abs().mean()}


@torch.no_grad()
def pixel_error(painter: nn.Module, data: Pictures, size: int = 50) -> float:
    """Mean absolute error of a colour channel, of 255, when the painter is given the true plan and noise."""
    device = next(painter.parameters()).device
    plans = plans_of(data.scenes).to(device)
    noise = noise_of(data.scenes).to(device)
    errors = []
    for part in cut(len(data), size):
        painted = painter(plans[part], noise[part])
        error = painted - to_tensor(data.pixels[part], device)
        errors.append(error.abs().mean())
    return 127.5 * torch.stack(errors).mean().item()


class Rivals(nn.Module):
    """Painter and discriminator, trained by one loss whose gradients go to each for its own part."""

    def __init__(self, painter: Painter, discriminator: Discriminator):
        super().__init__()
        self.painter = painter
        self.discriminator = discriminator

    def forward(
        self, plan: Tensor, noise: Tensor, pictures: Tensor, penalty: float, weight: float
    ) -> dict[str, Tensor]:
        """Relativistic losses with zero-centred gradient penalties on both sides (R3GAN: arXiv 2501.05441).

        Args:
            plan, noise, pictures: as `Paintings` has them.
            penalty: weight of the gradient penalties.
            weight: weight of the painter's part beside the reconstruction.
        """
        painted = self.painter(plan, noise)
        fake = painted.detach()
        real_logits = self.discriminator(pictures, plan)
        fake_logits = self.discriminator(fake, plan)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        painted_logits = functional_call(self.discriminator, frozen, (painted, plan))
        fooled = painted_logits - real_logits.detach()
        # Gradients of gradients are expensive: the penalty is measured on a quarter of each batch.
        some = slice(math.ceil(len(plan) / 4))
        slope = self._slope(pictures[some], plan[some]) + self._slope(fake[some], plan[some])
        return {
            "pixels": reconstruction(painted, pictures),
            "painter": weight * softplus(-fooled).mean(),
            "critic": softplus(fake_logits - real_logits).mean(),
            "slope": penalty / 2 * slope,
        }

    def _slope(self, images: Tensor, plan: Tensor) -> Tensor:
        """Mean squared norm of the gradient of the discriminator's logits with respect to `images`."""
        images = images.detach().requires_grad_()
        # Gradients of gradients also need full precision.
        with torch.autocast(images.device.type, enabled=False):
            logits = self.discriminator(images, plan)
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()


def rivalry(recipe: GeneratorRecipe) -> Loss[Paintings]:
    """The loss of painter and discriminator against each other."""

    def loss(rivals: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
        return add_up(rivals(*batch, recipe.penalty, recipe.rival_weight))

    return loss


# ── both ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class GeneratorRecipe(Recipe):
    """How the three phases of the generator are trained."""

    steps: int = 5000
    """Steps of the painter, by reconstruction."""
    batch: int = 16
    learning_rate: float = 2e-3
    ema: float = 0.998
    planner_steps: int = 3000
    planner_batch: int = 48
    planner_judged: int = 300
    """Captions of each split in each validation of the planner."""
    rival_steps: int = 900
    rival_learning_rate: float = 3e-4
    rival_weight: float = 0.05
    """Weight of the discriminator's opinion beside the reconstruction."""
    penalty: float = 1.0
    """Weight of the gradient penalties."""

    def phase(self, steps: int, rate: float) -> Recipe:
        """The plain recipe of a phase with this many steps and this peak learning rate."""
        shared = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return Recipe(**{**shared, "steps": steps, "learning_rate": rate})

    def planner_phase(self) -> Recipe:
        """The recipe of the planner."""
        return self.phase(self.planner_steps, self.learning_rate)

    def painter_phase(self) -> Recipe:
        """The recipe of the painter by itself."""
        return self.phase(self.steps, self.learning_rate)

    def rivals_phase(self) -> Recipe:
        """The recipe of the painter against the discriminator."""
        return self.phase(self.rival_steps, self.rival_learning_rate)


def make_generator(
    recipe: GeneratorRecipe, words: Vocabulary | None = None, plan: tuple[int, ...] = SLOT_SIZES
) -> Generator:
    """A generator with random weights.

    Args:
        words: that it reads, by default the drawn world's.
        plan: number of values of each column of a plan.
    """
    torch.manual_seed(recipe.seed)
    words = words or vocabulary()
    shape = Shape(len(words), plan, BACKGROUND_SIZE, INSTANCE_SIZE)
    return Generator(shape, words)


def train_planner(run: Path, recipe: GeneratorRecipe, minutes: float | None = None, device: str = "cpu") -> Outcome:
    """Trains the planner on captions alone, in the folder `run`."""
    splits: tuple[Split, ...] = ("validation", "unseen")

    def figures(model: nn.Module) -> dict[str, float]:
        planner = cast("Planner", model)
        found: dict[str, float] = {}
        for split in splits:
            found[split] = plan_accuracy(planner, split, recipe.planner_judged, seed=1, device=device)
        return found

    return train(
        make_generator(recipe).planner,
        plan_loss,
        texts(recipe.planner_batch, recipe.seed),
        recipe.planner_phase(),
        run,
        validation=Validation(figures, "validation"),
        minutes=minutes,
        device=device,
    )


def train_painter(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: GeneratorRecipe,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    """Trains the painter by reconstruction, in the folder `run`."""

    def figures(painter: nn.Module) -> dict[str, float]:
        return {"pixels": pixel_error(painter, validation)}

    return train(
        make_generator(recipe).painter,
        painting_loss,
        paintings(data, recipe.batch, recipe.seed),
        recipe.painter_phase(),
        run,
        validation=Validation(figures, "pixels", higher=False),
        minutes=minutes,
        device=device,
    )


def train_rivals(
    data: Pictures,
    start: Path,
    run: Path,
    recipe: GeneratorRecipe,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    """Trains the painter with the weights in `start` against a discriminator, in the folder `run`."""
    generator = make_generator(recipe)
    generator.painter.load_state_dict(load_file(start))
    rivals = Rivals(generator.painter, Discriminator(generator.shape.plan))
    # Another seed than in the painter's first phase gives other batches.
    batches = paintings(data, recipe.batch, recipe.seed + 1)
    return train(
        rivals,
        rivalry(recipe),
        batches,
        recipe.rivals_phase(),
        run,
        minutes=minutes,
        device=device,
    )


def train_generator(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: GeneratorRecipe | None = None,
    *,
    minutes: float | None = None,
    device: str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Trains planner, then painter, then painter against discriminator, each in its own folder below `run`.

    Leaves the whole generator in `run/weights.safetensors` as soon as all its parts have weights.
    """
    recipe = recipe or GeneratorRecipe()
    left = countdown(minutes, clock)
    outcome = train_planner(run / "planner", recipe, left(), device)
    if outcome.finished:
        outcome = train_painter(data, validation, run / "painter", recipe, left(), device)
    if outcome.finished:
        outcome = train_rivals(data, run / "painter/weights.safetensors", run / "rivals", recipe, left(), device)
    assemble(run, recipe, make_generator(recipe))
    return outcome


def countdown(minutes: float | None, clock: Callable[[], float] = time.monotonic) -> Callable[[], float | None]:
    """The function that says how many of the minutes from now are left; None where there is no limit."""
    start = clock()

    def left() -> float | None:
        if minutes is None:
            return None
        spent = (clock() - start) / 60
        return max(0.0, minutes - spent)

    return left


def painter_weights(run: Path) -> dict[str, Tensor]:
    """The painter's weights, as the generator names them, from a run that trained it alone or as part of something."""
    stored = load_file(run / "weights.safetensors")
    part = {name: weight for name, weight in stored.items() if name.startswith("painter.")}
    if part:
        return part
    return {f"painter.{name}": weight for name, weight in stored.items()}


def assemble(run: Path, recipe: GeneratorRecipe, generator: Generator) -> None:
    """Puts the best weights of the phases in `run` together with what they measured; does nothing if one is missing."""
    parts = {name: run / name / "weights.safetensors" for name in ("planner", "painter", "rivals")}
    if not (parts["planner"].exists() and parts["painter"].exists()):
        return
    weights = {f"planner.{name}": weight for name, weight in load_file(parts["planner"]).items()}
    weights |= painter_weights(run / ("rivals" if parts["rivals"].exists() else "painter"))
    generator.load_state_dict(weights)
    phases: dict[str, dict[str, Any]] = {}
    metrics: dict[str, float] = {}
    for name, path in parts.items():
        if path.exists():
            phases[name] = json.loads(path.with_suffix(".json").read_text())
            for key, value in phases[name]["metrics"].items():
                metrics[f"{name}/{key}"] = value
    facts = {
        **phases["painter"],
        "command": command(),
        "config": asdict(recipe),
        "metrics": metrics,
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "seconds": sum(phase["seconds"] for phase in phases.values()),
        "shape": asdict(generator.shape),
        "step": {name: phase["step"] for name, phase in phases.items()},
    }
    save_weights(run / "weights.safetensors", weights, facts)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def paint_scenes(generator: Generator, scenes: Sequence[Scene], seed: int, size: int = 32) -> Pictures:
    """What the generator makes of captions that say everything about `scenes`, in both languages in turn."""
    rng = np.random.default_rng(seed)
    captions = []
    for number, scene in enumerate(scenes):
        language = LANGUAGES[number % 2]
        captions.append(caption(scene, language, pick(rng, STYLES[1:]), rng))
    tokens = torch.from_numpy(vocabulary().encode_batch(captions)).to(next(generator.parameters()).device)
    seeds = [seed + number for number in range(len(scenes))]
    painted = [generator.sample(tokens[part], seeds[part]) for part in cut(len(scenes), size)]
    return Pictures(scenes, np.concatenate(painted))


def report(generator: Generator, splits: Mapping[str, Pictures]) -> dict[str, float]:
    """Figures of each split: plans that are right, and what the built-in recogniser finds in the pictures.

    The recogniser learnt from the same renderer as the generator: it is no independent judge.
    """
    result: dict[str, float] = {}
    recognizer = Recognizer()
    if RECOGNIZER.exists():
        recognizer.load_state_dict({name: tensor.float() for name, tensor in load_file(RECOGNIZER).items()})
        recognizer.to(next(generator.parameters()).device).eval()
    for split, data in splits.items():
        result[f"{split}/plan"] = plan_accuracy(generator.planner, cast("Split", split), len(data), seed=2)
        if RECOGNIZER.exists():
            found = recognition_figures(recognizer, paint_scenes(generator, data.scenes, seed=3))
            result |= {f"{split}/recognised {name}": value for name, value in found.items()}
    return result


RECOGNIZER = Path(__file__).parents[2] / "weights" / "recognizer.safetensors"
"""Shipped weights of the recogniser that looks at what was painted."""

TRAINABLE: Trainable[Pictures] = Trainable(build=make_generator, train=train_generator, report=report)
