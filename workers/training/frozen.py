"""Training that starts from earlier weights; the encoder that describer and matcher take over from the recogniser."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from workers.models.trunk import Trunk


def adopt_trunk(trunk: Trunk, recognizer: Path, *, freeze: bool) -> None:
    """Load the recogniser's encoder into `trunk`; frozen, it is only run, several times cheaper than training it."""
    prefix = "trunk."
    weights = {k.removeprefix(prefix): v.float() for k, v in load_file(recognizer).items() if k.startswith(prefix)}
    trunk.load_state_dict(weights)
    trunk.requires_grad_(not freeze)


def start_from(model: nn.Module, weights: Path) -> None:
    """Load all of a model's stored weights, to train it further."""
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})


def encode(trunk: Trunk, images: Tensor) -> Tensor:
    """The trunk's tokens; a frozen trunk runs as in use: without gradients, with the statistics it was trained to."""
    learning = next(trunk.parameters()).requires_grad
    with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
        tokens: Tensor = trunk.train(learning)(images)
    return tokens
