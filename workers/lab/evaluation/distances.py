"""Fréchet and kernel distance between generated and true pictures, to notice when a later generator gets worse.

The features are those of our own recogniser's encoder, not of Inception: the figures compare with each other only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from workers.lab.evaluation.contestants import Contestants
from workers.lab.training.data import Pictures
from workers.models.trunk import Trunk
from workers.scenes.grammar import caption


class _Features(nn.Module):
    """Mean and largest value of each of the encoder's channels: uint8 (B, 3, 64, 64) → (B, 2 · width)."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        self.trunk = trunk
        self.num_features = 2 * trunk.width

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.trunk(images.float() / 127.5 - 1).far
        return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


@torch.no_grad()
def figures(data: Pictures, contestants: Contestants, size: int = 200) -> dict[str, Any]:
    """Return the distances of the pictures that captions of `data` give from its own pictures."""
    features = _Features(contestants.recognizer.model.trunk)
    frechet = FrechetInceptionDistance(features, input_img_size=(3, 64, 64))
    kernel = KernelInceptionDistance(features, subsets=50, subset_size=min(1000, len(data)))
    for start in range(0, len(data), size):
        scenes = data.scenes[start : start + size]
        texts = [caption(scene, ("zh", "en")[i % 2], "detailed") for i, scene in enumerate(scenes)]
        painted = np.stack(contestants.draw(texts, list(range(start, start + len(texts)))))
        for pixels, real in ((data.pixels[start : start + size], True), (painted, False)):
            images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
            frechet.update(images, real=real)
            kernel.update(images, real=real)
    mean, spread = kernel.compute()
    return {
        "features": "the recogniser's encoder",
        "images": len(data),
        "frechet": float(frechet.compute()),
        "kernel": float(mean),
        "kernel_spread": float(spread),
    }
