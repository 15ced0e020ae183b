"""Disguises: pictures changed so that what things are is learnt from their forms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

KNOTS = 5
"""Points of a tone curve, evenly spaced over the range of brightness."""


def retone(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Gives a `share` of the pictures, in a part or all over, other hues, strengths of colour and brightnesses.

    Hues are turned around the axis of greys, colours made weaker or stronger, and brightness goes through a random
    curve, rising or falling: so a thing appears in colours that no training picture has it in, white and black
    too, while its outline, its pose and its place stay true. Returns the pictures, (B, 3, H, W) in [-1, 1], and which
    still show their true colours.
    """
    count, device = len(images), images.device
    brightness = images.mean(1, keepdim=True)
    turn = _hue_turns(torch.from_numpy(rng.uniform(0.15, 1.85, count).astype(np.float32)) * torch.pi)
    strength = torch.from_numpy(rng.uniform(-0.3, 1.3, (count, 1, 1)).astype(np.float32)).clamp(min=0)
    chroma = torch.einsum("bij,bjhw->bihw", (strength * turn).to(device), images - brightness)
    changed = (_curved(brightness, _curves(count, rng).to(device)) + chroma).clamp(-1, 1)
    return _partly(images, changed, share, rng)


def recolour(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turns the hues, and nothing else, of a part of each picture, or of all of it, for a `share` of the pictures.

    Returns the pictures and which still show their true colours.
    """
    angle = torch.from_numpy(rng.uniform(0.15, 1.85, len(images)).astype(np.float32)) * torch.pi
    turned = torch.einsum("bij,bjhw->bihw", _hue_turns(angle).to(images.device), images).clamp(-1, 1)
    return _partly(images, turned, share, rng)


def _partly(images: Tensor, changed: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A `share` of the pictures changed, most of them in a rectangle only; and which are not, bool (B,)."""
    count, device = len(images), images.device
    chosen = torch.from_numpy(rng.random(count) < share)
    whole = torch.from_numpy(rng.random((count, 1, 1)) < 0.3)
    inside = (_rectangles(count, images.shape[-1], 0.3, 1.0, rng) | whole) & chosen[:, None, None]
    return torch.where(inside[:, None].to(device), changed, images), ~chosen.to(device)


def _hue_turns(angle: Tensor) -> Tensor:
    """Rotations around the axis of greys (Rodrigues' formula), (B, 3, 3)."""
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) * torch.full((3, 3), 1 / 3)


def _curves(count: int, rng: np.random.Generator) -> Tensor:
    """Values of the tone curves at their knots, (B, KNOTS): two in five leave brightness alone, one in five turns it
    round. None is so flat that nothing is left to see."""
    plain = np.linspace(-1, 1, KNOTS)
    steps = 0.25 + rng.exponential(size=(count, KNOTS - 1))
    heights = steps.cumsum(1) / steps.sum(1, keepdims=True)
    contrast = rng.uniform(0.5, 1.0, (count, 1))
    lowest = rng.uniform(-1, 1 - 2 * contrast)
    bent = lowest + 2 * contrast * np.concatenate([np.zeros((count, 1)), heights], 1)
    lot = rng.random((count, 1))
    return torch.from_numpy(np.where(lot < 0.4, plain, np.where(lot < 0.8, bent, bent[:, ::-1])).astype(np.float32))


def _curved(brightness: Tensor, curves: Tensor) -> Tensor:
    """Linear interpolation between the knots; brightness (B, 1, H, W) in [-1, 1]."""
    position = (brightness.flatten(1) + 1) / 2 * (KNOTS - 1)
    knot = position.long().clamp(0, KNOTS - 2)
    low, high = curves.gather(1, knot), curves.gather(1, knot + 1)
    return torch.lerp(low, high, position - knot).view_as(brightness)


def _rectangles(count: int, side: int, least: float, most: float, rng: np.random.Generator) -> Tensor:
    """A rectangle in each of `count` squares, its sides between two shares of theirs; bool (count, side, side)."""
    size = torch.from_numpy(rng.uniform(least, most, (2, count, 1)).astype(np.float32))
    start = torch.from_numpy(rng.uniform(0, 1, (2, count, 1)).astype(np.float32)) * (1 - size)
    cells = torch.linspace(0, 1, side)
    within = (cells >= start) & (cells <= start + size)
    return within[0][:, :, None] & within[1][:, None, :]


def tilt(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Turns, shears and stretches a `share` of the pictures.

    Pose and size are then not what they were, but what things are, their colours, number and place still hold: forms
    are learnt apart from poses. Returns the pictures, which are still upright (B,), and where each point comes from,
    (B, 2, 3) as `affine_grid` takes it.
    """
    count = len(images)
    upright = torch.from_numpy(rng.random(count) >= share)
    lots = torch.from_numpy(rng.uniform(-1, 1, (6, count)).astype(np.float32))
    angle, shear = lots[0] * 0.7, lots[1] * 0.3
    wide, tall = torch.exp(lots[2] * 0.2), torch.exp(lots[3] * 0.2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    stretch = torch.stack([wide, shear, torch.zeros(count), tall], 1).view(-1, 2, 2)
    change = torch.cat([turn @ stretch, lots[4:].T[:, :, None] * 0.1], 2)
    change[upright] = torch.eye(2, 3)
    change = change.to(images.device)
    grid = affine_grid(change, list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned, upright.to(images.device), change
