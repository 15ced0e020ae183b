"""The discriminator that the generator is trained against: image and plan → one logit. Never used to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, leaky_relu


class Discriminator(nn.Module):
    """Residual convolutions without normalisation, conditioned by projection (Miyato and Koyama, 2018).

    A relativistic loss with zero-centred gradient penalties needs no normalisation to be stable
    (R3GAN: Huang et al., 2024, arXiv 2501.05441).
    """

    def __init__(
        self,
        plan_sizes: Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 96),
        width: int = 128,
    ):
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, stride=2, padding=1)
        self.stages = nn.ModuleList(_Down(*pair) for pair in pairwise(channels))
        self.head = nn.Linear(channels[-1] * 16, width)
        self.logit = nn.Linear(width, 1)
        self.plan = nn.ModuleList(nn.Embedding(size, width) for size in plan_sizes)

    def forward(self, images: Tensor, plan: Tensor) -> Tensor:
        """Images (B, 3, 64, 64) in [-1, 1] and plans (B, slots) → logits (B,), larger for real ones."""
        x = leaky_relu(self.stem(images), 0.2)
        for stage in self.stages:
            x = stage(x)
        code = leaky_relu(self.head(x.flatten(1)), 0.2)
        columns = [table(plan[:, i]) for i, table in enumerate(self.plan)]
        wanted = torch.stack(columns).sum(0)
        likeness = (code * wanted).sum(1) / code.shape[1] ** 0.5
        logit: Tensor = self.logit(code).squeeze(1) + likeness
        return logit


class _Down(nn.Module):
    """A residual block, then half the resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.second = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(leaky_relu(self.first(x), 0.2))
        return leaky_relu(avg_pool2d(y + self.skip(x), 2), 0.2)
