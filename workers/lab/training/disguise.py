"""Disguises: pictures changed so that what things are is learnt from their forms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

KNOTS = 5
"""Points of a tone curve, evenly spaced over the range of brightness."""


def _uniform(rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> Tensor:
    """Uniform random numbers, float32."""
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def retone(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Gives a `share` of the pictures, in a part or all over, other hues, strengths of colour and brightnesses.

    Hues are turned around the axis of greys, colours made weaker or stronger, and brightness goes through a random
    curve, rising or falling: so a thing appears in colours that no training picture has it in, white and black
    too, while its outline, its pose and its place stay true.

    Returns:
        The pictures, (B, 3, H, W) in [-1, 1], and which still show their true colours, bool (B,).
    """
    count = len(images)
    device = images.device
    brightness = images.mean(1, keepdim=True)
    turn = _hue_turns(_uniform(rng, 0.15, 1.85, count) * torch.pi)
    strength = _uniform(rng, -0.3, 1.3, (count, 1, 1)).clamp(min=0)
    mixing = (strength * turn).to(device)
    chroma = torch.einsum("bij,bjhw->bihw", mixing, images - brightness)
    curves = _sample_curves(count, rng).to(device)
    retoned = _apply_curves(brightness, curves) + chroma
    return _change_some(images, retoned.clamp(-1, 1), share, rng)


def recolour(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turns the hues, and nothing else, of a part of each picture, or of all of it, for a `share` of the pictures.

    Returns:
        The pictures, (B, 3, H, W) in [-1, 1], and which still show their true colours, bool (B,).
    """
    angle = _uniform(rng, 0.15, 1.85, len(images)) * torch.pi
    turns = _hue_turns(angle).to(images.device)
    turned = torch.einsum("bij,bjhw->bihw", turns, images)
    return _change_some(images, turned.clamp(-1, 1), share, rng)


def _change_some(images: Tensor, changed: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A `share` of the pictures changed, most of them in a rectangle only; and which are not, bool (B,)."""
    count = len(images)
    device = images.device
    chosen = torch.from_numpy(rng.random(count) < share)
    whole = torch.from_numpy(rng.random((count, 1, 1)) < 0.3)
    parts = _sample_rectangles(count, images.shape[-1], 0.3, 1.0, rng)
    inside = (parts | whole) & chosen[:, None, None]
    return torch.where(inside[:, None].to(device), changed, images), ~chosen.to(device)


def _hue_turns(angle: Tensor) -> Tensor:
    """Rotations by angles (B,) around the axis of greys (Rodrigues' formula), (B, 3, 3)."""
    cross = torch.tensor(
        [
            [0.0, -1.0, 1.0],
            [1.0, 0.0, -1.0],
            [-1.0, 1.0, 0.0],
        ]
    )
    cross = cross / 3**0.5
    cos = angle.cos()[:, None, None]
    sin = angle.sin()[:, None, None]
    grey = torch.full((3, 3), 1 / 3)
    return cos * torch.eye(3) + sin * cross + (1 - cos) * grey


def _sample_curves(count: int, rng: np.random.Generator) -> Tensor:
    """Values of random tone curves at their knots, (B, KNOTS).

    Two in five leave brightness alone, one in five turns it round. No curve is so flat that nothing is left to see.
    """
    plain = np.linspace(-1, 1, KNOTS)
    steps = 0.25 + rng.exponential(size=(count, KNOTS - 1))
    heights = steps.cumsum(1) / steps.sum(1, keepdims=True)
    contrast = rng.uniform(0.5, 1.0, (count, 1))
    lowest = rng.uniform(-1, 1 - 2 * contrast)
    rising = np.concatenate([np.zeros((count, 1)), heights], 1)
    bent = lowest + 2 * contrast * rising
    kind = rng.random((count, 1))
    curves = np.where(kind < 0.8, bent, bent[:, ::-1])
    curves = np.where(kind < 0.4, plain, curves)
    return torch.from_numpy(curves.astype(np.float32))


def _apply_curves(brightness: Tensor, curves: Tensor) -> Tensor:
    """Linear interpolation between the knots; brightness (B, 1, H, W) in [-1, 1]."""
    position = (brightness.flatten(1) + 1) / 2 * (KNOTS - 1)
    knot = position.long().clamp(0, KNOTS - 2)
    low = curves.gather(1, knot)
    high = curves.gather(1, knot + 1)
    return torch.lerp(low, high, position - knot).view_as(brightness)


def _sample_rectangles(count: int, side: int, least: float, most: float, rng: np.random.Generator) -> Tensor:
    """A rectangle in each of `count` squares, its sides between two shares of theirs; bool (count, side, side)."""
    size = _uniform(rng, least, most, (2, count, 1))
    start = _uniform(rng, 0, 1, (2, count, 1)) * (1 - size)
    cells = torch.linspace(0, 1, side)
    rows, columns = ((cells >= start) & (cells <= start + size)).unbind(0)
    return rows[:, :, None] & columns[:, None, :]


class Tilted(NamedTuple):
    """Pictures of which some are turned and stretched."""

    images: Tensor
    """(B, 3, H, W)"""
    upright: Tensor
    """Whether a picture is as it was, bool (B,)."""
    change: Tensor
    """The map from each point to where it comes from, (B, 2, 3) as `affine_grid` takes it."""


def tilt(images: Tensor, share: float, rng: np.random.Generator) -> Tilted:
    """Turns, shears and stretches a `share` of the pictures, (B, 3, H, W).

    Pose and size are then not what they were, but what things are, their colours, number and place still hold: forms
    are learnt apart from poses.
    """
    count = len(images)
    upright = torch.from_numpy(rng.random(count) >= share)
    numbers = _uniform(rng, -1, 1, (6, count))
    angle = numbers[0] * 0.7
    shear = numbers[1] * 0.3
    wide = torch.exp(numbers[2] * 0.2)
    tall = torch.exp(numbers[3] * 0.2)
    shift = numbers[4:].T[:, :, None] * 0.1
    none = torch.zeros(count)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    stretch = torch.stack([wide, shear, none, tall], 1)
    matrix = turn.view(-1, 2, 2) @ stretch.view(-1, 2, 2)
    change = torch.cat([matrix, shift], 2)
    change[upright] = torch.eye(2, 3)
    change = change.to(images.device)
    grid = affine_grid(change, list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return Tilted(turned, upright.to(images.device), change)
