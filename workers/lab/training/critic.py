"""The critic: it says of each single thing in a picture what it is and what it does, and the painter learns from it.

Half of the pairs of object and action that people may ask for need not be in any picture. A critic that has seen
drawn pictures of the other pairs, and learnt *what* a thing is apart from *what it does*, can judge a pair that it
never met, and its gradient tells the painter what is missing; see `workers.lab.training.guided`.

* What a thing is, small neighbourhoods say, a head or a hull, each for itself, whatever the pose of the rest.
* What it does, the whole thing says, by one head for all animals, which is not told what animal it is.

It is neither the recogniser, which the match engine asks, nor the judge: a network of its own on pictures of its own,
and it sees things one by one where those see whole pictures. It answers no job and is not shipped.

    python -m workers.lab.training.critic --out runs/critic --threads 1
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log as ln
from pathlib import Path
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, max_pool2d, softplus

from workers.lab.training.checkpoint import write_atomically
from workers.lab.training.data import Pictures, disturb, draw_pictures, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import start_from
from workers.lab.training.loop import Outcome, Validation, train
from workers.lab.training.recipe import Recipe
from workers.lab.training.recognizer import actions_met, cells_within, count_lookalikes, rectangles, strip
from workers.lab.world.quadrupeds import BUILDS
from workers.lab.world.render import Box, places
from workers.models.recognizer import UNMET
from workers.models.trunk import GRID, Block
from workers.scenes.grammar import ANIMALS, UNSEEN_ACTIONS, Scene, Split, slots
from workers.scenes.lexicon import KEYS

log = logging.getLogger("workers.lab.training")

SIDE = 48
"""Width and height of the cuttings that it looks at, one thing in each."""
CELLS = 2 * GRID
"""Cells across a cutting, each with an opinion of what is there."""
N_OBJECTS, N_ACTIONS = len(KEYS["object"]), len(KEYS["action"]) + 1

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Cuttings (N, 3, SIDE, SIDE); object and action (N, 2), action −1 where it is not asked for; which cells are in a
telling part of the thing, (N, cells), and in one of anything of each object, (N, 10, cells); which actions were met
(10, 7)."""


class Opinion(NamedTuple):
    """Logits for N cuttings."""

    evidence: Tensor
    """What each cell says for each object, (N, 10, cells)."""
    action: Tensor
    """(N, 7); the first is standing still."""

    @property
    def presence(self) -> Tensor:
        """(N, 10)"""
        return self.evidence.logsumexp(2)


class Critic(nn.Module):
    """Cuttings to opinions."""

    def __init__(self, width: int = 64, dropout: float = 0.1):
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(SIDE // CELLS),
            nn.Conv2d(3 * (SIDE // CELLS) ** 2, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        # A cell sees 21 of 48 pixels: a head, and little else.
        self.near = Block(width, width)
        self.parts = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Dropout2d(dropout))
        self.evidence = nn.Conv2d(2 * width, N_OBJECTS, 1)
        nn.init.constant_(self.evidence.bias, -2 * ln(CELLS) - 1.0)  # type: ignore[arg-type]
        self.far = nn.Sequential(Block(width, width + width // 2, 2), Block(width + width // 2, 2 * width, 2))
        self.action = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * width * (CELLS // 4) ** 2, 128), nn.ReLU(), nn.Dropout(2 * dropout),
            nn.Linear(128, N_ACTIONS),
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls, weights: Path) -> Self:
        """A critic with stored weights, frozen."""
        model = cls()
        model.load_state_dict(load_file(weights))
        return model.eval().requires_grad_(False)

    def forward(self, cuttings: Tensor) -> Opinion:
        """Cuttings (N, 3, SIDE, SIDE) in [-1, 1] → what the critic thinks of them."""
        near = self.near(self.stem(cuttings))
        return Opinion(self.evidence(self.parts(near)).flatten(2).float(), self.action(self.far(near)).float())


# ── cuttings ──────────────────────────────────────────────────────────────────────────────────────

FOOT, WAIST, REACH = 0.15, 0.58, 0.9
"""In heights of a thing, which the painter's frames were found to have: how far below the middle of its frame it
stands, how far above its feet the middle of its window is, and how far the window reaches to each side."""


def windows(spot: Tensor, play: Tensor) -> Tensor:
    """Which part of a picture is cut out for each thing, as `affine_grid` takes it, (N, 2, 3).

    Args:
        spot: each thing's middle, where it stands and its height, in shares of the picture, (N, 3).
        play: in [-1, 1], (N, 3): moves and scales each window by up to an eighth.
    """
    x, foot, height = spot.unbind(1)
    half = REACH * height * (1 + play[:, 2] / 8)
    x, y = x + play[:, 0] * height / 8, foot + (play[:, 1] / 8 - WAIST) * height
    none = torch.zeros_like(x)
    return torch.stack([2 * half, none, 2 * x - 1, none, 2 * half, 2 * y - 1], 1).view(-1, 2, 3)


def framed(frames: Tensor) -> Tensor:
    """Middle, foot and height of things, (N, 3), from the painter's frames (N, 4)."""
    return torch.stack([frames[:, 0], frames[:, 1] + FOOT * frames[:, 3], frames[:, 3]], 1)


def cut(images: Tensor, window: Tensor) -> Tensor:
    """Images (N, 3, H, W) → cuttings (N, 3, SIDE, SIDE), of what each window (N, 2, 3) shows."""
    grid = affine_grid(window, [len(window), 1, SIDE, SIDE], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is where in pictures, thing by thing: N things in all."""

    picture: NDArray[np.int64]
    """Of which picture, (N,)."""
    kind: NDArray[np.int64]
    """Object, 0 the first, and action, 0 for none: (N, 2)."""
    spot: NDArray[np.float32]
    """Middle, foot and height, see `windows`: (N, 3)."""
    telling: NDArray[np.float32]
    """The box around the part that tells what it is, (N, 4)."""
    acts: NDArray[np.bool_]
    """Whether its action is to be seen: houses never act."""
    heads: NDArray[np.bool_]
    """Whether what tells is a head."""
    facing: NDArray[np.int64]
    """1 to the right, −1 to the left."""

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Self:
        rows: list[tuple[int, tuple[int, int], tuple[float, float, float], Box, int]] = []
        for i, scene in enumerate(scenes):
            for each in places(scene):
                left, _, right, _ = each.box
                action = KEYS["action"].index(each.thing.action) + 1 if each.thing.action else 0
                kind = KEYS["object"].index(each.thing.object), action
                telling = each.head.box if each.head else each.box
                rows.append(
                    (i, kind, ((left + right) / 2, each.y, each.height), telling, -1 if each.instance.flip < 0 else 1)
                )
        picture, kind_, spot, telling_, facing = zip(*rows, strict=True)
        animals, headed = (np.array([object_ in some for object_ in KEYS["object"]]) for some in (ANIMALS, BUILDS))
        kinds = np.array(kind_, np.int64)
        return cls(
            np.array(picture, np.int64), kinds, np.array(spot, np.float32), np.array(telling_, np.float32),
            animals[kinds[:, 0]], headed[kinds[:, 0]], np.array(facing),
        )  # fmt: skip


def head_cells(things: Catalogue) -> Tensor:
    """In which cells of a cutting heads are in each action, looking to the right, bool (7, cells).

    Of all four-legged animals together: where sleeping cats and horses have their heads, a sleeping rabbit has its own.
    """
    cells = torch.zeros(N_ACTIONS, 1, CELLS, CELLS)
    left, top, right, bottom = things.telling.T
    middle, foot, height = things.spot.T
    x = ((left + right) / 2 - middle) * things.facing / (REACH * height)
    y = (bottom - (bottom - top) / 2.5 - foot + WAIST * height) / (REACH * height)
    column, row = (((each + 1) / 2 * CELLS).astype(np.int64).clip(0, CELLS - 1) for each in (x, y))
    mine = things.heads
    cells[things.kind[mine, 1], 0, row[mine], column[mine]] = 1
    return max_pool2d(cells, 5, 1, 2).bool().flatten(1)


# ── training ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CriticRecipe(Recipe):
    steps: int = 1500
    learning_rate: float = 2.5e-3
    warmup: int = 60
    ema: float = 0.998
    weight_decay: float = 0.05
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 250
    bf16: bool = False
    batch: int = 64
    """Cuttings, each from another picture."""
    retone: float = 0.45
    """Share that gets false colours: what a thing is and does is no matter of its colour."""
    bare: float = 0.2
    """Share in which only the telling part of a thing is left, over an empty place; its action is not asked for."""
    faceless: float = 0.2
    """Share in which the telling part is blurred away, of half of the heads the face alone: nothing tells what the
    thing is, and nothing may seem to. Ears alone do not."""
    earless: float = 0.15
    """Share of which what is above the face is blurred away: the face alone tells what it is."""
    tilt: float = 0.3
    """Share that is turned and stretched; its action is then not asked for."""
    lookalikes: float = 2.0
    """How much more often than others pictures of four-legged animals are drawn."""
    start: str = ""
    """Weights to start from, instead of from chance."""


def batches(data: Pictures, recipe: CriticRecipe) -> Callable[[int], Batch]:
    things, known = Catalogue.of(data.scenes), rectangles(data.scenes)
    facts = np.stack([slots(scene) for scene in data.scenes])
    met = actions_met(facts)
    often = (1 + recipe.lookalikes * count_lookalikes(facts))[things.picture]
    often /= often.sum()

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        rows = np.sort(rng.choice(len(things.picture), recipe.batch, p=often))
        chosen = things.picture[rows]
        pixels, kind = data.pixels[chosen], things.kind[rows]
        lot = rng.random(recipe.batch)
        bare, faceless = lot < recipe.bare, lot > 1 - recipe.faceless
        earless = (lot > 1 - recipe.faceless - recipe.earless) & ~bare & ~faceless & things.heads[rows]
        for i in bare.nonzero()[0]:
            pixels[i], _ = strip(pixels[i], known[chosen[i], :, 1], rng)
        for i in faceless.nonzero()[0]:
            box = things.telling[rows[i]]
            pixels[i] = blurred(pixels[i], face(box) if things.heads[rows[i]] and rng.random() < 0.5 else box)
        for i in earless.nonzero()[0]:
            pixels[i] = blurred(pixels[i], ears(things.telling[rows[i]]))
        images, _ = retone(to_tensor(pixels), recipe.retone, rng)
        play = torch.from_numpy(rng.uniform(-1, 1, (recipe.batch, 3)).astype(np.float32))
        window = windows(torch.from_numpy(things.spot[rows]), play)
        cuttings, upright, turn = tilt(cut(images, window), recipe.tilt, rng)
        # Where a point of the turned cutting is in the picture.
        shown = window[:, :, :2] @ turn
        shown[:, :, 2] += window[:, :, 2]
        own = cells_within(torch.from_numpy(things.telling[rows, None, None, None]), shown)[:, 0, 0]
        telling = torch.zeros(recipe.batch, N_OBJECTS + 1, CELLS**2, dtype=torch.bool)
        objects = torch.from_numpy(facts[chosen][:, [0, 5]])[:, :, None]
        around = cells_within(torch.from_numpy(known[chosen]), shown)[:, :, 1]
        telling.scatter_(1, objects.expand_as(around), around)
        hidden = torch.from_numpy(faceless)[:, None]
        telling &= ~(own & hidden)[:, None]
        object_, action = torch.from_numpy(kind).unbind(1)
        asked = torch.from_numpy(things.acts[rows] & ~bare & ~faceless) & upright
        kind_ = torch.stack([object_, action.where(asked, -1)], 1)
        return disturb(cuttings, rng), kind_, own & ~hidden, telling[:, 1:], met

    return batch


def face(head: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part of a head's box (4,) below the ears; see `workers.lab.world.render.Head`."""
    left, _, right, bottom = head
    radius = (right - left) / 2.6
    return np.array([left, bottom - 1.9 * radius, right, bottom])


def ears(head: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is above the face in a head's box (4,), and higher up."""
    left, _, right, bottom = head
    radius = (right - left) / 2.6
    return np.array([left - 0.5 * radius, bottom - 3.7 * radius, right + 0.5 * radius, bottom - 2 * radius])


def blurred(picture: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture (S, S, 3) with nothing left in a box, given in shares of it, but a few soft spots."""
    side = len(picture)
    left, top, right, bottom = (box * side + (-2, -2, 2, 2)).round().clip(0, side).astype(int).tolist()
    image = Image.fromarray(picture)
    part = image.crop((left, top, right, bottom))
    coarse = part.resize((2, 2), Image.Resampling.BOX).resize(part.size, Image.Resampling.BILINEAR)
    image.paste(coarse, (left, top))
    return np.asarray(image)


def criticism(critic: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Evidence of an object has to come from its telling part and from nowhere else; actions by cross entropy.

    As for the recogniser, an action that an object was never met in costs nothing for being rare:
    see `workers.models.recognizer.UNMET`.
    """
    cuttings, kind, own, telling, met = batch
    opinion: Opinion = critic(cuttings)
    object_, action = kind.unbind(1)
    elsewhere = opinion.evidence.masked_fill(telling, -100.0).logsumexp(2)
    there = opinion.evidence.masked_fill(~own[:, None], -100.0).logsumexp(2)
    told = own.any(1)
    parts = {
        "elsewhere": softplus(elsewhere).sum(1).mean(),
        "there": softplus(-there.gather(1, object_[:, None])[told, 0]).mean(),
        "object": cross_entropy(there[told], object_[told]),
        "action": action_loss(opinion.action, object_, action, met),
    }
    return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}


def action_loss(logits: Tensor, object_: Tensor, action: Tensor, met: Tensor) -> Tensor:
    acts = met.sum(1, keepdim=True) > 1
    total = cross_entropy(logits - UNMET * (acts & ~met)[object_], action, ignore_index=-1, reduction="sum")
    return total / (action >= 0).sum().clamp(min=1)


@torch.no_grad()
def opinions(critic: Critic, data: Pictures, size: int = 250) -> tuple[Catalogue, NDArray[np.int64]]:
    """What the critic takes each thing in the pictures for: object and action (N, 2)."""
    things = Catalogue.of(data.scenes)
    found = []
    for start in range(0, len(things.picture), size):
        rows = slice(start, start + size)
        spot = torch.from_numpy(things.spot[rows])
        window = windows(spot, torch.zeros_like(spot))
        opinion: Opinion = critic(cut(to_tensor(data.pixels[things.picture[rows]]), window))
        found.append(torch.stack([opinion.presence.argmax(1), opinion.action.argmax(1)], 1).numpy())
    return things, np.concatenate(found)


def figures(critic: nn.Module, data: Pictures) -> dict[str, float]:
    """Shares of things whose object is right, whose action is, of those that act, and both."""
    things, found = opinions(cast("Critic", critic), data)
    right = found == things.kind
    right[~things.acts, 1] = True
    return {
        "object": float(right[:, 0].mean()),
        "action": float(right[things.acts, 1].mean()),
        "both": float(right.all(1).mean()),
    }


def unmet(critic: Critic, data: Pictures) -> dict[str, float]:
    """Shares of things in pairs of object and action that no training picture shows, pair by pair: what the critic
    takes them for. Told, and never used to choose anything."""
    things, found = opinions(critic, data)
    told = {}
    for object_, action in sorted(UNSEEN_ACTIONS):
        mine = (things.kind == (KEYS["object"].index(object_), KEYS["action"].index(action) + 1)).all(1)
        if mine.any():
            right = found[mine] == things.kind[mine]
            told[f"{object_} {action}/object"], told[f"{object_} {action}/action"] = right.mean(0).tolist()
    return told


def train_critic(
    data: Pictures, validation: Pictures, run: Path, recipe: CriticRecipe, minutes: float | None = None
) -> Outcome:
    torch.manual_seed(recipe.seed)
    judge = Validation(lambda critic: figures(critic, validation), "both")
    critic = Critic()
    if recipe.start:
        start_from(critic, Path(recipe.start))
    return train(critic, criticism, batches(data, recipe), recipe, run, validation=judge, minutes=minutes)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m workers.lab.training.critic", description=__doc__)
    default = CriticRecipe()
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rate", type=float, default=default.learning_rate, help="peak learning rate")
    parser.add_argument("--start", default="", help="weights to start from")
    parser.add_argument("--pictures", type=int, default=20_000, help="training pictures to draw")
    parser.add_argument("--seed", type=int, default=6001, help="of weights and batches; of the pictures plus one")
    parser.add_argument("--cache", type=Path, default=Path("runs/pictures"), help="where drawn pictures are kept")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = CriticRecipe(steps=options.steps, seed=options.seed, start=options.start, learning_rate=options.rate)

    def drawn(split: Split, count: int) -> Pictures:
        return draw_pictures(split, count, seed=options.seed + 1, cache=options.cache, processes=options.threads)

    data, validation, strange = drawn("train", options.pictures), drawn("validation", 1000), drawn("unseen", 1000)
    if train_critic(data, validation, options.out, recipe, options.minutes).finished:
        weights = options.out / "weights.safetensors"
        facts = json.loads(weights.with_suffix(".json").read_text())
        facts["command"] = shlex.join(["python", "-m", "workers.lab.training.critic", *sys.argv[1:]])
        facts["metrics"] |= unmet(Critic.load(weights), strange)
        write_atomically(weights.with_suffix(".json"), json.dumps(facts, indent=2, sort_keys=True).encode())
        log.info("%s\n%s", weights, json.dumps(facts["metrics"], indent=2))


if __name__ == "__main__":
    main()
