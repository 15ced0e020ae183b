"""Layers whose answer for a row does not depend, to the last bit, on how many other rows are computed with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

TILE = 16
"""Rows that are multiplied at once. A library of linear algebra chooses how it multiplies by the number of rows, and
each way adds up in another order; for one number of rows it is always the same way."""


class SteadyLinear(nn.Linear):
    """A linear layer that computes alike for a row, whatever comes with it: on the CPU, outside training, (B, inputs).

    Convolutions of one thread do so by themselves. A GPU, and a convolution of several threads, chooses among more ways
    by the whole shape; on a GPU this is a plain linear layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """(B, inputs) → (B, outputs)."""
        if torch.is_grad_enabled() or input.device.type != "cpu":
            return super().forward(input)
        rows = len(input)
        filled = pad(input, (0, 0, 0, -rows % TILE)) if rows % TILE else input
        if len(filled) == TILE:
            return linear(filled, self.weight, self.bias)[:rows]
        parts = [linear(part, self.weight, self.bias) for part in torch.split(filled, TILE)]
        return torch.cat(parts)[:rows]
