"""Training the generator: its planner on captions, its painter on pictures of the drawn world.

The painter learns in two phases. First by *reconstruction*: the noise that varied a training picture is known, so the
painter can be told what to draw, which is far cheaper than learning it from a critic alone. Then a discriminator joins
in, for the sharpness that averages of pixel errors do not ask for.

    train_generator(pictures("train", 20_000), pictures("validation", 500), Path("runs/generator"), minutes=30)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softplus

from tuwen.jobs import Language, Style
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.data import Pictures, to_tensor
from workers.lab.training.loop import Loss, Outcome, Validation, command, train
from workers.lab.training.recipe import Recipe
from workers.lab.training.recognizer import figures as recognized
from workers.lab.world.latents import BACKGROUND_SIZE, INSTANCE_SIZE, latents
from workers.models.discriminator import Discriminator
from workers.models.generator import Generator, Painter, Planner, Shape
from workers.models.recognizer import Recognizer
from workers.models.text import Vocabulary, vocabulary
from workers.scenes.grammar import ANIMALS, SLOT_SIZES, Scene, Split, caption, pick, sample_scene, slots
from workers.scenes.lexicon import KEYS

LANGUAGES: tuple[Language, ...] = ("zh", "en")
STYLES: tuple[Style, ...] = ("short", "detailed", "tags")

Texts: TypeAlias = tuple[Tensor, Tensor]
"""Tokens (B, L) and the plans (B, columns) that they describe."""
Paintings: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Plans (B, columns), noise (B, noise) and pictures (B, 3, 64, 64) in [-1, 1]."""


# ── planner ───────────────────────────────────────────────────────────────────────────────────────


def texts(size: int, seed: int) -> Callable[[int], Texts]:
    """Batches of captions in both languages, half of them leaving things out as people do.

    A batch is of one style, so that its texts are about equally long.
    """

    def batch(step: int) -> Texts:
        rng = np.random.default_rng((seed, step))
        scenes = [sample_scene(rng, "train") for _ in range(size)]
        style = pick(rng, STYLES)
        captions = [caption(scene, pick(rng, LANGUAGES), style, rng, omit=pick(rng, (0.0, 0.4))) for scene in scenes]
        return _to_tensors(captions, scenes)

    return batch


def _to_tensors(captions: list[str], scenes: list[Scene], device: torch.device | str = "cpu") -> Texts:
    plans = torch.from_numpy(np.stack([slots(scene) for scene in scenes]))
    return torch.from_numpy(vocabulary().encode_batch(captions)).to(device), plans.to(device)


def planning(planner: nn.Module, batch: Texts) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Negative log-likelihood of the plan, in nats a picture."""
    tokens, plan = batch
    logits = planner(tokens, plan)
    loss = torch.stack([cross_entropy(column, plan[:, i]) for i, column in enumerate(logits)]).sum()
    return loss, {}


def plan_accuracy(planner: Planner, split: Split, count: int, seed: int, device: torch.device | str = "cpu") -> float:
    """Share of captions that leave nothing out whose sampled plan is right in every column.

    Only standing still is never said: of an animal whose caption names no action any action is right.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split) for _ in range(count)]
    captions = [caption(scene, pick(rng, LANGUAGES), pick(rng, STYLES[1:]), rng) for scene in scenes]
    tokens, plans = _to_tensors(captions, scenes, device)
    lots = torch.from_numpy(rng.random(plans.shape, dtype=np.float32)).to(device)
    right = planner.sample(tokens, lots) == plans
    animals = torch.tensor([KEYS["object"].index(animal) + 1 for animal in ANIMALS], device=plans.device)
    for thing in (0, 5):
        right[:, thing + 2] |= (plans[:, thing + 2] == 0) & torch.isin(plans[:, thing], animals)
    return right.all(1).float().mean().item()


# ── painter ───────────────────────────────────────────────────────────────────────────────────────


def paintings(data: Pictures, size: int, seed: int) -> Callable[[int], Paintings]:
    """Batches of pictures with the plan and the noise that they were drawn from."""
    plans = np.stack([slots(scene) for scene in data.scenes])
    noise = np.stack([latents(scene) for scene in data.scenes])

    def batch(step: int) -> Paintings:
        rows = np.sort(np.random.default_rng((seed, step)).integers(len(data), size=size))
        return torch.from_numpy(plans[rows]), torch.from_numpy(noise[rows]), to_tensor(data.pixels[rows])

    return batch


def reconstruction(painted: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute and squared errors of pixels, and absolute errors of their differences, which make edges."""
    error = painted - pictures
    loss = error.abs().mean() + 4 * error.square().mean()
    for distance in (1, 2):
        loss = loss + 0.5 * (error[..., distance:] - error[..., :-distance]).abs().mean()
        loss = loss + 0.5 * (error[..., distance:, :] - error[..., :-distance, :]).abs().mean()
    return loss


def painting(painter: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
    plan, noise, pictures = batch
    painted = painter(plan, noise)
    return reconstruction(painted, pictures), {"pixels": (painted - pictures).detach().abs().mean()}


@torch.no_grad()
def pixel_error(painter: nn.Module, data: Pictures, size: int = 50) -> float:
    """Mean absolute error of a colour channel, of 255, when the painter is given the true plan and noise."""
    device = next(painter.parameters()).device
    plans, noise = (torch.from_numpy(np.stack([of(s) for s in data.scenes])).to(device) for of in (slots, latents))
    errors = [
        (painter(plans[i : i + size], noise[i : i + size]) - to_tensor(data.pixels[i : i + size], device)).abs().mean()
        for i in range(0, len(data), size)
    ]
    return 127.5 * torch.stack(errors).mean().item()


class Rivals(nn.Module):
    """Painter and discriminator, trained by one loss whose gradients go to each for its own part."""

    def __init__(self, painter: Painter, discriminator: Discriminator):
        super().__init__()
        self.painter, self.discriminator = painter, discriminator

    def forward(
        self, plan: Tensor, noise: Tensor, pictures: Tensor, penalty: float, weight: float
    ) -> dict[str, Tensor]:
        """Relativistic losses with zero-centred gradient penalties on both sides (R3GAN: arXiv 2501.05441)."""
        painted = self.painter(plan, noise)
        fake = painted.detach()
        real_logits, fake_logits = self.discriminator(pictures, plan), self.discriminator(fake, plan)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, frozen, (painted, plan)) - real_logits.detach()
        # Gradients of gradients are dear: the penalty is measured on a quarter of each batch.
        some = slice(-(-len(plan) // 4))
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


def rivalry(penalty: float, weight: float) -> Loss[Paintings]:
    def loss(rivals: nn.Module, batch: Paintings) -> tuple[Tensor, Mapping[str, Tensor]]:
        parts = rivals(*batch, penalty, weight)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    return loss


# ── both ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class GeneratorRecipe(Recipe):
    steps: int = 5000
    """Of the painter, by reconstruction."""
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
    """Of the discriminator's opinion beside the reconstruction."""
    penalty: float = 1.0

    def phase(self, steps: int, rate: float) -> Recipe:
        """The plain recipe of one of the phases."""
        shared = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        return Recipe(**{**shared, "steps": steps, "learning_rate": rate})


def make_generator(
    recipe: GeneratorRecipe, words: Vocabulary | None = None, plan: tuple[int, ...] = SLOT_SIZES
) -> Generator:
    torch.manual_seed(recipe.seed)
    words = words or vocabulary()
    return Generator(Shape(len(words), plan, BACKGROUND_SIZE, INSTANCE_SIZE), words)


def train_planner(run: Path, recipe: GeneratorRecipe, minutes: float | None = None, device: str = "cpu") -> Outcome:
    """On captions alone, in the folder `run`."""
    splits: tuple[Split, ...] = ("validation", "unseen")

    def figures(planner: nn.Module) -> dict[str, float]:
        planner = cast("Planner", planner)
        return {split: plan_accuracy(planner, split, recipe.planner_judged, seed=1, device=device) for split in splits}

    phase = recipe.phase(recipe.planner_steps, recipe.learning_rate)
    batches = texts(recipe.planner_batch, recipe.seed)
    planner = make_generator(recipe).planner
    judge = Validation(figures, "validation")
    return train(planner, planning, batches, phase, run, validation=judge, minutes=minutes, device=device)


def train_painter(
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: GeneratorRecipe,
    minutes: float | None = None,
    device: str = "cpu",
) -> Outcome:
    """By reconstruction, in the folder `run`."""
    judge = Validation(lambda painter: {"pixels": pixel_error(painter, validation)}, "pixels", higher=False)
    phase = recipe.phase(recipe.steps, recipe.learning_rate)
    batches = paintings(data, recipe.batch, recipe.seed)
    painter = make_generator(recipe).painter
    return train(painter, painting, batches, phase, run, validation=judge, minutes=minutes, device=device)


def train_rivals(
    data: Pictures, start: Path, run: Path, recipe: GeneratorRecipe, minutes: float | None = None, device: str = "cpu"
) -> Outcome:
    """The painter with the weights in `start` against a discriminator, in the folder `run`."""
    generator = make_generator(recipe)
    generator.painter.load_state_dict(load_file(start))
    rivals = Rivals(generator.painter, Discriminator(generator.shape.plan))
    # Another seed than the painter's first phase: other batches.
    batches = paintings(data, recipe.batch, recipe.seed + 1)
    phase = recipe.phase(recipe.rival_steps, recipe.rival_learning_rate)
    loss = rivalry(recipe.penalty, recipe.rival_weight)
    return train(rivals, loss, batches, phase, run, minutes=minutes, device=device)


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
    """Planner, then painter, then painter against discriminator, each in its own folder below `run`.

    Leaves the whole generator in `run/weights.safetensors` as soon as all its parts have weights.
    """
    recipe = recipe or GeneratorRecipe()
    start = clock()

    def left() -> float | None:
        return None if minutes is None else max(0.0, minutes - (clock() - start) / 60)

    outcome = train_planner(run / "planner", recipe, left(), device)
    if outcome.finished:
        outcome = train_painter(data, validation, run / "painter", recipe, left(), device)
    if outcome.finished:
        outcome = train_rivals(data, run / "painter/weights.safetensors", run / "rivals", recipe, left(), device)
    assemble(run, recipe, make_generator(recipe))
    return outcome


def painter_weights(run: Path) -> dict[str, Tensor]:
    """Those of the painter, as the generator names them, from a run that trained it alone or as part of something."""
    stored = load_file(run / "weights.safetensors")
    part = {name: weight for name, weight in stored.items() if name.startswith("painter.")}
    return part or {f"painter.{name}": weight for name, weight in stored.items()}


def assemble(run: Path, recipe: GeneratorRecipe, generator: Generator) -> None:
    """Puts the best weights of the phases in `run` together with what they measured; does nothing if one is missing."""
    parts = {name: run / name / "weights.safetensors" for name in ("planner", "painter", "rivals")}
    if not (parts["planner"].exists() and parts["painter"].exists()):
        return
    weights = {f"planner.{name}": weight for name, weight in load_file(parts["planner"]).items()}
    weights |= painter_weights(run / ("rivals" if parts["rivals"].exists() else "painter"))
    told = {name: json.loads(path.with_suffix(".json").read_text()) for name, path in parts.items() if path.exists()}
    generator.load_state_dict(weights)
    facts = {
        **told["painter"],
        "command": command(),
        "config": asdict(recipe),
        "metrics": {f"{name}/{key}": value for name, facts in told.items() for key, value in facts["metrics"].items()},
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "seconds": sum(facts["seconds"] for facts in told.values()),
        "shape": asdict(generator.shape),
        "step": {name: facts["step"] for name, facts in told.items()},
    }
    save_weights(run / "weights.safetensors", weights, facts)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def pictures_of(generator: Generator, scenes: Sequence[Scene], seed: int, size: int = 32) -> Pictures:
    """What the generator makes of captions that say everything about `scenes`, in both languages by turns."""
    rng = np.random.default_rng(seed)
    texts = [caption(scene, LANGUAGES[i % 2], pick(rng, STYLES[1:]), rng) for i, scene in enumerate(scenes)]
    tokens = torch.from_numpy(vocabulary().encode_batch(texts)).to(next(generator.parameters()).device)
    seeds = [seed + i for i in range(len(scenes))]
    painted = [generator.sample(tokens[i : i + size], seeds[i : i + size]) for i in range(0, len(scenes), size)]
    return Pictures(scenes, np.concatenate(painted))


def report(generator: Generator, splits: Mapping[Split, Pictures]) -> dict[str, float]:
    """Figures of each split: plans that are right, and what the built-in recogniser finds in the pictures.

    The recogniser learnt from the same renderer as the generator: it is no independent judge.
    """
    result: dict[str, float] = {}
    recognizer = Recognizer()
    if RECOGNIZER.exists():
        recognizer.load_state_dict({name: tensor.float() for name, tensor in load_file(RECOGNIZER).items()})
        recognizer.to(next(generator.parameters()).device).eval()
    for split, data in splits.items():
        result[f"{split}/plan"] = plan_accuracy(generator.planner, split, len(data), seed=2)
        if RECOGNIZER.exists():
            found = recognized(recognizer, pictures_of(generator, data.scenes, seed=3))
            result |= {f"{split}/recognised {name}": value for name, value in found.items()}
    return result


RECOGNIZER = Path(__file__).parents[2] / "weights" / "recognizer.safetensors"
"""Shipped weights of the recogniser that looks at what was painted."""
