"""The judge: a detector that finds every object of a picture by itself, wherever it stands.

It shares nothing with the models that it judges: a feature pyramid (Lin et al., 2017) whose cells each say whether an
object is centred there (CenterNet: Zhou et al., 2019), how far its edges are (FCOS: Tian et al., 2019) and what it is;
it was trained on other data with other seeds. It has never read a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from tuwen.errors import EngineStartFailed
from workers.engines.framing import fit
from workers.lab.evaluation.sighting import VALUES, Box, Detection, Sighting
from workers.scenes.lexicon import KEYS, Role

SIDE = 64
"""Width and height of the pictures that it looks at."""
GRID = 16
"""Cells across a picture."""
ROLES: tuple[Role, ...] = ("object", "colour", "action", "size")
MOST = 10
"""Most objects that it reports."""
WEIGHTS = Path(__file__).parent.parent / "weights" / "judge.safetensors"


@dataclass(frozen=True, slots=True)
class Maps:
    """What each cell says, for a batch of B pictures."""

    presence: Tensor
    """Logit of being an object's centre, (B, cells)."""
    edges: Tensor
    """Distances to left, top, right and bottom edge in shares of the picture, (B, cells, 4)."""
    roles: dict[Role, Tensor]
    """Logits of each role's values, (B, cells, values)."""
    place: Tensor
    """Logits, (B, 6)."""


class _Residual(nn.Module):
    """Two 3×3 convolutions with a shortcut, at half the resolution where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        narrow = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut = narrow if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.body(x) + self.shortcut(x))


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) → `Maps`; see the module."""

    def __init__(self, width: int = 24, head: int = 64):
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
        )
        self.fine = _Residual(width, 2 * width, 2)
        self.middle = nn.Sequential(_Residual(2 * width, 4 * width, 2), _Residual(4 * width, 4 * width, 1))
        self.coarse = _Residual(4 * width, 5 * width, 2)
        self.from_fine = nn.Conv2d(2 * width, head, 1)
        self.from_middle = nn.Conv2d(4 * width, head, 1)
        self.from_coarse = nn.Conv2d(5 * width, head, 1)
        self.from_whole = nn.Linear(5 * width, head)
        self.merge = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(head, head, 3, 1, 1, bias=False),
            nn.BatchNorm2d(head),
            nn.SiLU(),
        )
        self.where = nn.Conv2d(head, 5, 1)
        self.what = nn.Sequential(
            nn.Conv2d(head, 2 * head, 1),
            nn.SiLU(),
            nn.Conv2d(2 * head, sum(len(VALUES[role]) for role in ROLES), 1),
        )
        self.place = nn.Linear(5 * width, len(KEYS["place"]))
        # Hardly any cell is a centre: at first, none is taken for one.
        nn.init.constant_(self.where.bias[:1], -4.0)  # type: ignore[index]
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.4))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(cls, weights: Path = WEIGHTS, device: str = "cpu") -> Self:
        """The judge with stored weights, ready to judge.

        Raises:
            EngineStartFailed: there are none.
        """
        if not weights.exists():
            train = "python -m workers.lab.evaluation.judge_training --out runs/judge --ship"
            raise EngineStartFailed(f"no weights at {weights}: train them with `{train}`")
        model = cls()
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
        return model.to(device).eval()

    def forward(self, images: Tensor) -> Maps:
        """Pictures (B, 3, 64, 64) in [-1, 1] → what each of 16×16 cells says."""
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        whole = coarse.mean((2, 3))
        merged = self.from_middle(middle) + interpolate(self.from_coarse(coarse), scale_factor=2.0)
        merged = self.from_fine(fine) + interpolate(merged, scale_factor=2.0) + self.from_whole(whole)[:, :, None, None]
        merged = self.merge(merged)
        where = self.where(merged).flatten(2).mT
        what = self.what(merged).flatten(2).mT
        sizes = [len(VALUES[role]) for role in ROLES]
        roles = dict(zip(ROLES, what.split(sizes, -1), strict=True))
        return Maps(where[..., 0], where[..., 1:].exp() / 4, roles, self.place(whole))

    @torch.no_grad()
    def look(self, pictures: NDArray[np.uint8] | list[NDArray[np.uint8]], size: int = 64) -> list[Sighting]:
        """What is to be seen in uint8 RGB pictures (height, width, 3) of any size, in batches of `size`."""
        sightings: list[Sighting] = []
        for start in range(0, len(pictures), size):
            pixels = np.stack([fit(picture, SIDE, SIDE) for picture in pictures[start : start + size]])
            images = torch.from_numpy(pixels).to(self.threshold.device).permute(0, 3, 1, 2)
            images = images.float() / 127.5 - 1
            sightings += sight(self(images), float(self.threshold))
        return sightings


def cells() -> Tensor:
    """Centres x, y of the cells in shares of the picture, (cells, 2), row by row."""
    steps = (torch.arange(GRID) + 0.5) / GRID
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([columns, rows], -1).view(-1, 2)


def sight(maps: Maps, threshold: float) -> list[Sighting]:
    """Objects where a cell is surer than `threshold` and than all cells within two of it."""
    presence = maps.presence.float().sigmoid()
    square = presence.view(-1, 1, GRID, GRID)
    peak = (square == max_pool2d(square, 5, 1, 2)).view_as(presence)
    best = (presence * peak).topk(MOST)
    middles = cells().to(presence.device)
    upper_left = middles - maps.edges[..., :2].float()
    lower_right = middles + maps.edges[..., 2:].float()
    edges = torch.cat([upper_left, lower_right], -1)
    at = best.indices[..., None]
    boxes = edges.gather(1, at.expand(-1, -1, 4)).cpu().numpy()
    chances = {
        role: logits.gather(1, at.expand(-1, -1, logits.shape[-1])).float().softmax(-1).cpu().numpy()
        for role, logits in maps.roles.items()
    }
    places = maps.place.float().softmax(-1).cpu().numpy()
    sightings = []
    for row, values in enumerate(best.values.tolist()):
        found = []
        for number, value in enumerate(values):
            if value > threshold:
                box = cast("Box", tuple(boxes[row, number].tolist()))
                mine = {role: chance[row, number] for role, chance in chances.items()}
                found.append(Detection(box, value, mine))
        sightings.append(Sighting(tuple(found), places[row]))
    return sightings
