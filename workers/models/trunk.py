"""The image encoder that recogniser, describer and matcher each have one of: a small residual CNN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

SIDE = 64
"""Width and height of the pictures that the models read, in pixels."""
GRID = SIDE // 8
WIDTH = 96
"""Channels of the last convolutions; the earlier ones have fewer."""


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut (He et al., 2016), halving the picture where `stride` is 2."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        changes = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(self.first(x)).relu()
        out: Tensor = (self.second_norm(self.second(y)) + self.shortcut(x)).relu()
        return out


@dataclass(frozen=True, slots=True)
class Views:
    """The same B pictures at three depths: the shallower, the smaller the part of the picture that a cell knows of."""

    stem: Tensor
    """(B, width / 4, 32, 32), each cell of 6×6 pixels: colours and edges."""
    near: Tensor
    """(B, width / 2, 16, 16), each cell of 34×34 pixels: parts of things, like a head."""
    far: Tensor
    """(B, 64, width), tokens of an 8×8 grid that know of the whole picture: poses, numbers, relations."""


class Trunk(nn.Module):
    """Picture (B, 3, 64, 64) in [-1, 1] → `Views`.

    One layer of self-attention after the convolutions lets each cell know of the others: relations and counts
    are not local.
    """

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, width // 4, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(),
        )
        self.near = nn.Sequential(Block(width // 4, width // 2, 2), Block(width // 2, width // 2))
        self.far = nn.Sequential(Block(width // 2, width, 2), Block(width, width))
        # Convolutions on processors are faster with this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self.places = nn.Parameter(torch.randn(GRID * GRID, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, images: Tensor) -> Views:
        stem = self.stem(images)
        near = self.near(stem)
        x = self.far(near).flatten(2).transpose(1, 2) + self.places
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(gelu(self.widen(self.mix_norm(x))))
        return Views(stem, near, x)


class DomainHead(nn.Module):
    """Says whether a picture is of the drawn world at all: a logit from the mean and the largest of each channel.

    Training on outliers orders pictures well, but where it puts zero is chance: `threshold` moves it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, 64), nn.ReLU(), nn.Linear(64, 1))
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, tokens: Tensor) -> Tensor:
        logit: Tensor = self.layers(torch.cat([tokens.mean(1), tokens.amax(1)], 1)).squeeze(1)
        return logit - self.threshold

    def admit(self, logits: Tensor, share: float = 0.995) -> None:
        """Sets the threshold so that this share of pictures that are of the drawn world stays positive."""
        self.threshold += torch.quantile(logits.float(), 1 - share)
