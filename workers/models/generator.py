"""The generator: text → plan → picture, both steps trained networks.

1. `Planner`, a recurrent network with attention, reads the text and writes the *plan*: what is where doing what, as
   integers. What the text leaves open is drawn at random from the distribution that the network learnt.
2. `Painter`, the generator of a conditional GAN, turns plan and noise into pixels: convolutions decode every thing in
   its own frame, with its transparency, and the background; a spatial transformer (Jaderberg et al., 2015) places the
   things over it.

The plan is the bottleneck: the painter sees nothing of the text but the plan, and noise says nothing of content.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, leaky_relu

from workers.models.steady import SteadyLinear
from workers.models.text import Vocabulary, vocabulary

THINGS = 4
"""Most things in one picture."""
PLACE, RELATION = 10, 11
"""Columns of a plan. Before them: object, colour, action, size, count of the first kind of thing, then the second."""
OPEN = -1
"""Value of a column that the planner is to fill, in a plan that is settled beforehand."""
NOBODY = -1
"""Count of the first kind of thing in a picture of a place alone."""
SIDE = 64
"""Width and height of a picture in pixels."""
SPRITE = 48
"""Width and height of a thing in its own frame, which is mostly smaller than this in the picture."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that make a generator; stored beside its weights."""

    vocabulary: int
    plan: tuple[int, ...]
    """Number of values of each column of a plan; 0 is none."""
    scene_noise: int
    """Numbers that vary the picture as a whole: light, background."""
    thing_noise: int
    """Numbers that vary each thing: x, y, size, then the side it looks to (by its sign), then its looks."""
    text_width: int = 96

    @property
    def noise(self) -> int:
        """Length of a picture's noise, each number uniform in [-1, 1]: the scene's, then each thing's."""
        return self.scene_noise + THINGS * self.thing_noise


class Planner(nn.Module):
    """Text to plan, one column after another, so that columns that the text leaves open agree with each other.

    Each column looks for its word in the text. Where to look is decided in context (which colour belongs to which
    animal), but what is read there is the word alone: so a colour is read the same on things it was never seen on.
    What the text does not say is looked up in a null word, whose meaning depends on the columns before.
    """

    def __init__(self, shape: Shape, heads: int = 4):
        super().__init__()
        width = shape.text_width
        self.heads = heads
        self.words = nn.Embedding(shape.vocabulary, width, padding_idx=0)
        self.reader = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.key = nn.Linear(2 * width, width)
        self.meaning, self.meaning_in_context = nn.Linear(width, width), nn.Linear(2 * width, width)
        self.columns = nn.Parameter(torch.randn(len(shape.plan), width))
        self.values = nn.ModuleList(nn.Embedding(size, width) for size in shape.plan)
        self.query = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.null_key = nn.Parameter(torch.zeros(width))
        self.null = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.ends = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)) for size in shape.plan)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (B, L), 0 is padding → keys, words, words in context (B, L, width) each; what is padding (B, L)."""
        words = self.words(tokens)
        lengths = (tokens > 0).sum(1).clamp_min(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        context, _ = nn.utils.rnn.pad_packed_sequence(
            self.reader(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )
        return self.key(context), self.meaning(words), self.meaning_in_context(context), tokens == 0

    def forward(self, tokens: Tensor, plan: Tensor) -> list[Tensor]:
        """Logits (B, size) of each column, given the true columns before it."""
        text = self.read(tokens)
        known = torch.stack([table(plan[:, i]) for i, table in enumerate(self.values)], 1)
        if self.training:
            # Columns but the objects are now and then forgotten, so that none trusts another over the text.
            forgotten = torch.rand_like(known[:, :, :1]) < 0.3
            forgotten[:, [0, 5]] = False
            known = known * ~forgotten
        found = self._find(slice(None), known.cumsum(1) - known, *text)
        return [end(found[:, column]) for column, end in enumerate(self.ends)]

    def _find(
        self, which: slice, before: Tensor, keys: Tensor, words: Tensor, context: Tensor, padding: Tensor
    ) -> Tensor:
        """What columns find (B, C, width), from the sum of what is known before each of them (B, C, width)."""
        state = self.columns[which] + before
        query = self._split(self.query(state)) / (state.shape[-1] / self.heads) ** 0.5
        seen = (query @ self._split(keys).mT).masked_fill(padding[:, None, None], -torch.inf)
        unsaid = query @ self.null_key.view(self.heads, -1, 1)
        share = torch.cat([unsaid, seen], 3).softmax(3)
        null = share[..., :1] * self._split(self.null(state))
        found = null + share[..., 1:] @ self._split(words)
        # A relation is no word's own meaning: "left of" depends on what stands before and after it.
        related = null + share[..., 1:] @ self._split(context)
        relation = torch.arange(len(self.ends), device=keys.device)[which] == RELATION
        both: Tensor = torch.where(relation[:, None], related, found)
        return both.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, width) → (B, heads, L, width / heads)."""
        return x.view(len(x), x.shape[1], self.heads, -1).transpose(1, 2)

    @torch.no_grad()
    def sample(self, tokens: Tensor, lots: Tensor, threshold: float = 0.1, *, settled: Tensor | None = None) -> Tensor:
        """Plans (B, columns) drawn with uniform `lots` (B, columns).

        Values less likely than `threshold` of the likeliest are never drawn: what the text says is certain.
        `settled` (B, columns) are values that are known beforehand, and `OPEN` where they are not.
        """
        text = self.read(tokens)
        plan: list[Tensor] = []
        before = torch.zeros_like(text[0][:, :1])
        for column, (table, end) in enumerate(zip(self.values, self.ends, strict=True)):
            found = self._find(slice(column, column + 1), before, *text)
            chances = end(found[:, 0]).float().softmax(-1)
            chances = torch.where(chances < threshold * chances.amax(-1, keepdim=True), 0, chances)
            reached = chances.cumsum(-1) / chances.sum(-1, keepdim=True)
            value = (reached <= lots[:, column : column + 1]).sum(-1).clamp_max(chances.shape[-1] - 1)
            if settled is not None:
                value = torch.where(settled[:, column] == OPEN, value, settled[:, column])
            before = before + table(value)[:, None]
            plan.append(value)
        return torch.stack(plan, 1)


class Painted(NamedTuple):
    """B pictures with N things in all."""

    pictures: Tensor
    """(B, 3, 64, 64) in [-1, 1]."""
    picture: Tensor
    """Of which picture each thing is, (N,)."""
    kind: Tensor
    """Object, colour, action and size of each thing, as in the plan, (N, 4)."""
    frames: Tensor
    """Where each thing's frame is, (N, 4), see `_Frames`."""


class Painter(nn.Module):
    """Plan and noise to pixels: the generator of the GAN."""

    def __init__(self, shape: Shape, width: int = 192):
        super().__init__()
        self.memory = 0.85
        """How often, in training, what was learnt by heart is at hand; the decoder alone draws what never was."""
        self.scene_noise, self.thing_noise = shape.scene_noise, shape.thing_noise
        objects, colours, actions, sizes, _ = shape.plan[:5]
        self.object, self.action = nn.Embedding(objects, width), nn.Embedding(actions, width)
        self.size, self.colour = nn.Embedding(sizes, width), nn.Embedding(colours, width)
        self.place = nn.Embedding(shape.plan[PLACE], width)
        self.pose, self.light = SteadyLinear(shape.thing_noise, width), SteadyLinear(shape.scene_noise, width)
        self.form = nn.Sequential(_Mixer(width), _Mixer(width))
        self.scenery = nn.Sequential(_Mixer(width), _Mixer(width))
        self.frames = _Frames(width, sizes)
        self.background = _Decoder(width, SIDE, 3, (128, 64, 32, 16))
        self.thing = _Decoder(width, SPRITE, 4, (128, 96, 64, 32))
        self.known = nn.Parameter(torch.zeros(objects, actions, *self.thing.inner))
        # To begin with, a thing covers the middle of its frame: from nothing at all it would not start to learn.
        across = torch.linspace(-1, 1, SPRITE)
        with torch.no_grad():
            self.thing.bias[3] = 1 - 2 * (across[:, None] ** 2 + across**2)

    def forward(self, plan: Tensor, noise: Tensor) -> Tensor:
        """Plans (B, columns) and noise (B, noise) in [-1, 1] → pictures (B, 3, 64, 64) in [-1, 1]."""
        return self.paint(plan, noise).pictures

    def paint(self, plan: Tensor, noise: Tensor) -> Painted:
        """The pictures of plans (B, columns) and noise (B, noise) in [-1, 1], and where their things are in them."""
        scene, poses = noise[:, : self.scene_noise], noise[:, self.scene_noise :]
        scenery = self.scenery(self.place(plan[:, PLACE]) + self.light(scene))
        background: Tensor = self.background(scenery, scenery)
        kinds, cells, present = things(plan)
        picture, slot = present.nonzero(as_tuple=True)
        kind = kinds[picture, slot]
        if not len(picture):
            return Painted(background, picture, kind, background.new_zeros(0, 4))
        object_, colour, action, size = kind.unbind(1)
        pose = poses.view(-1, THINGS, self.thing_noise)[picture, slot]
        form = self.form(self.object(object_) + self.action(action) + self.size(size) + self.pose(pose))
        # Colour enters late and knows nothing of the form, so that it also suits forms it was never seen on.
        paint = self.colour(colour) + self.place(plan[picture, PLACE]) + self.pose(pose)
        frames = self.frames(cells[picture, slot], size, form, pose)
        sprites = onto_canvas(self.thing(form, paint, self._recall(object_, action)), frames)
        return Painted(compose(background, sprites, frames, picture, slot), picture, kind, frames)

    def _recall(self, object_: Tensor, action: Tensor) -> Tensor:
        """What was learnt by heart of objects in their actions; sometimes forgotten, so that the decoder learns it too.

        The decoder alone then draws what was never seen.
        """
        known = KNOWN_GAIN * self.known[object_, action]
        return known * (torch.rand(len(known), 1, 1, 1, device=known.device) < self.memory) if self.training else known


KNOWN_GAIN = 3.0
"""Makes what is learnt by heart learn faster than the rest."""


def things(plan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a plan (B, columns) asks for, thing by thing.

    Returns:
        object, colour, action and size (B, THINGS, 4); the cell of the picture where it stands (B, THINGS), below
        `CELLS`; and which of them are there at all (B, THINGS).
    """
    order = torch.arange(THINGS, device=plan.device)
    first = torch.where(plan[:, 4:5] == NOBODY, 0, plan[:, 4:5].clamp(1, THINGS))
    second = torch.minimum(plan[:, 9:10].clamp_min(0), THINGS - first) * (plan[:, 5:6] > 0)
    kinds = torch.where((order < first)[:, :, None], plan[:, None, 0:4], plan[:, None, 5:9])
    cells = _LAYOUTS.to(plan.device)[first[:, 0], second[:, 0], plan[:, RELATION]]
    return kinds, cells, order < (first + second)


CELLS = (
    *((0.5, 0.55, 0.6),),
    *((0.27, 0.6, 0.4), (0.73, 0.6, 0.4)),
    *((0.5, 0.36, 0.34), (0.26, 0.73, 0.34), (0.74, 0.73, 0.34)),
    *((0.27, 0.36, 0.32), (0.73, 0.36, 0.32), (0.27, 0.75, 0.32), (0.73, 0.75, 0.32)),
    *((0.27, 0.6, 0.4), (0.73, 0.6, 0.4)),  # two kinds, relation not said
    *((0.27, 0.6, 0.4), (0.73, 0.6, 0.4)),  # the first to the left of the second
    *((0.73, 0.6, 0.4), (0.27, 0.6, 0.4)),
    *((0.5, 0.3, 0.4), (0.5, 0.73, 0.4)),  # the first above the second
    *((0.5, 0.73, 0.4), (0.5, 0.3, 0.4)),
)
"""Places at which training starts to look for a thing: centre and height as shares of the picture.

For one, two, three and four equal things, then for two kinds by their relation.
"""


def _layout(first: int, second: int, relation: int) -> tuple[int, ...]:
    """The cells of so many things of two kinds in a relation (a value of its column)."""
    alone = {total: range(total * (total - 1) // 2, total * (total + 1) // 2) for total in range(THINGS + 1)}
    beside = range(10 + 2 * relation, 12 + 2 * relation)
    left, right, top, bottom = (6, 8), (7, 9), (6, 7), (8, 9)
    """Columns and rows of the cells of four."""
    if (first, second) == (1, 1):
        return tuple(beside)
    if relation and 1 <= first <= 2 and 1 <= second <= 2:
        sides = ((left, right), (right, left), (top, bottom), (bottom, top))[relation - 1]
        # Training has shown single things of two kinds in the middle of their side.
        groups = (sides[i] if count == 2 else beside[i : i + 1] for i, count in enumerate((first, second)))
        return tuple(cell for group in groups for cell in group)
    return tuple(alone[min(first + second, THINGS)])


def _layouts() -> Tensor:
    """Cells by the counts of both kinds and the relation, (THINGS + 1, THINGS + 1, 5, THINGS)."""
    table = torch.zeros(THINGS + 1, THINGS + 1, 5, THINGS, dtype=torch.long)
    for first, second, relation in product(range(THINGS + 1), range(THINGS + 1), range(5)):
        cells = _layout(first, second, relation)
        table[first, second, relation, : len(cells)] = torch.tensor(cells, dtype=torch.long)
    return table


_LAYOUTS = _layouts()


class _Frames(nn.Module):
    """Place and size of each thing: learnt from a rough first guess."""

    def __init__(self, width: int, sizes: int):
        super().__init__()
        guess = torch.tensor(CELLS)[:, None].repeat(1, sizes, 1)
        guess[:, :, 2].mul_(torch.linspace(0.5, 1.0, sizes)).log_()
        self.guess = nn.Parameter(guess)
        self.play = nn.Parameter(torch.tensor((0.1, 0.05, 0.08)).repeat(len(CELLS), sizes, 1))
        self.cell = nn.Embedding(len(CELLS), width)
        end = SteadyLinear(width, 4)
        nn.init.zeros_(end.weight)
        nn.init.zeros_(end.bias)
        self.change = nn.Sequential(nn.LayerNorm(width), SteadyLinear(width, width), nn.GELU(), end)

    def forward(self, cell: Tensor, size: Tensor, form: Tensor, pose: Tensor) -> Tensor:
        """Centre x and y (0…1), half the frame's width (its sign mirrors it) and height, shape (N, 4)."""
        x, y, scale = (self.guess[cell, size] + self.play[cell, size] * pose[:, :3]).unbind(1)
        dx, dy, wider, larger = self.change(form + self.cell(cell)).unbind(1)
        half = 0.75 * (scale + larger).exp()
        mirror = torch.where(pose[:, 3] < 0, -1.0, 1.0)
        return torch.stack([x + dx * mirror, y + dy, half * wider.exp() * mirror, half], 1)


def onto_canvas(sprites: Tensor, frames: Tensor) -> Tensor:
    """Sprites (N, 4, side, side) in their own frames → in the picture, transparent outside their frames."""
    x, y, width, height = frames.unbind(1)
    none = torch.zeros_like(x)
    theta = torch.stack([0.5 / width, none, (0.5 - x) / width, none, 0.5 / height, (0.5 - y) / height], 1)
    grid = affine_grid(theta.view(-1, 2, 3), [len(theta), 1, SIDE, SIDE], align_corners=False)
    cover = (sprites[:, 3:] + 1) / 2
    return grid_sample(torch.cat([sprites[:, :3] * cover, cover], 1), grid, align_corners=False)


def compose(canvas: Tensor, sprites: Tensor, frames: Tensor, picture: Tensor, slot: Tensor) -> Tensor:
    """Lays sprites (N, 4, 64, 64), colours times cover, then cover, over the canvas (B, 3, 64, 64).

    Those that stand higher in the picture are further away and come first.
    """
    heights = frames.new_zeros(len(canvas), THINGS).index_put((picture, slot), frames[:, 1].detach())
    rank = heights.argsort(1).argsort(1)[picture, slot]
    layers = sprites.new_zeros(len(canvas), THINGS, *sprites.shape[1:]).index_put((picture, rank), sprites)
    for layer in layers.unbind(1):
        canvas = torch.addcmul(layer[:, :3], canvas, 1 - layer[:, 3:])
    return canvas


class _Mixer(nn.Module):
    """A residual two-layer perceptron."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), SteadyLinear(width, 2 * width), nn.GELU(), SteadyLinear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.layers(x)
        return x + change


class _Modulation(nn.Module):
    """Scale and shift of each channel by a code (FiLM: Perez et al., 2018), then leaky ReLU."""

    def __init__(self, channels: int, code: int):
        super().__init__()
        self.code = SteadyLinear(code, 2 * channels)
        nn.init.normal_(self.code.weight, std=0.02)
        nn.init.zeros_(self.code.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.code(code)[:, :, None, None].chunk(2, 1)
        return leaky_relu(torch.addcmul(shift, x, 1 + scale), 0.2, inplace=True)


class _Decoder(nn.Module):
    """A code of the form and a code of the paint to a picture (N, colours, side, side) in [-1, 1].

    The form is decoded first, from a sixteenth of the side upwards; the paint only scales and shifts what is there.
    """

    def __init__(self, code: int, side: int, colours: int, channels: Sequence[int]):
        super().__init__()
        self.start = side // 16
        self.seed = SteadyLinear(code, channels[0] * self.start**2)
        pairs = list(pairwise(channels))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1) for inputs, outputs in pairs)
        self.form = nn.ModuleList(_Modulation(outputs, code) for _, outputs in pairs)
        self.mix = nn.Conv2d(channels[-1], channels[-1], 1)
        self.paint = _Modulation(channels[-1], code)
        self.end = nn.ConvTranspose2d(channels[-1], colours, 4, 2, 1)
        self.bias = nn.Parameter(torch.zeros(colours, side, side))
        self.inner = (channels[-1], side // 2, side // 2)

    def forward(self, form: Tensor, paint: Tensor, known: Tensor | float = 0.0) -> Tensor:
        """`known` is added to the feature maps of the form, whose shape is `inner`."""
        x = self.seed(form).view(len(form), -1, self.start, self.start).contiguous(memory_format=torch.channels_last)
        for grow, modulate in zip(self.grow, self.form, strict=True):
            x = modulate(grow(x), form)
        picture: Tensor = self.end(self.paint(self.mix(x + known), paint)) + self.bias
        return picture.tanh()


class Generator(nn.Module):
    """Text to pictures."""

    def __init__(self, shape: Shape, words: Vocabulary | None = None):
        super().__init__()
        self.shape = shape
        self.vocabulary = words or vocabulary()
        self.planner, self.painter = Planner(shape), Painter(shape)

    @classmethod
    def load(cls, weights: Path, device: torch.device | str = "cpu") -> Self:
        """The generator in `weights` (safetensors, with its shape in the JSON file beside it), ready to sample."""
        shape = json.loads(weights.with_suffix(".json").read_text())["shape"]
        model = cls(Shape(**{**shape, "plan": tuple(shape["plan"])}), Vocabulary.beside(weights))
        model.load_state_dict(load_file(weights))
        return model.to(device).eval()

    @torch.no_grad()
    def sample(self, tokens: Tensor, seeds: Sequence[int], settled: Tensor | None = None) -> NDArray[np.uint8]:
        """Pictures (B, 64, 64, 3), uint8 RGB, of tokens (B, L), 0 is padding; each by its own text and seed alone.

        `settled` (B, columns) is what of the plans is known beforehand (see `Planner.sample`).
        """
        plan, noise = self.plan(tokens, seeds, settled)
        pictures = self.painter(plan, noise).add(1).mul(127.5).round().clamp(0, 255)
        pixels: NDArray[np.uint8] = pictures.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return pixels

    @torch.no_grad()
    def plan(self, tokens: Tensor, seeds: Sequence[int], settled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The plans (B, columns) and the noise (B, noise) that `sample` paints."""
        columns = len(self.shape.plan)
        draws = torch.stack([_draws(columns + self.shape.noise, seed) for seed in seeds]).to(tokens.device)
        plan = self.planner.sample(tokens, draws[:, :columns], settled=settled)
        if settled is not None:
            # The planner has learnt from pictures of things and knows of no picture without any.
            plan[:, 4].masked_fill_((settled[:, 0] == 0) & (settled[:, 4] == 0), NOBODY)
        return plan, 2 * draws[:, columns:] - 1


def _draws(count: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on the seed alone, on every device."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
