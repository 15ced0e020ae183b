"""What words do not say about a picture: one fixed vector of independent uniform numbers for each scene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.scenes.grammar import Scene

BACKGROUND_SIZE = 20
INSTANCES = 4
INSTANCE_SIZE = 7
LATENT_SIZE = BACKGROUND_SIZE + INSTANCES * INSTANCE_SIZE


class Instance(NamedTuple):
    """One drawn object's share of the vector, each in [-1, 1]."""

    x: float
    y: float
    scale: float
    flip: float
    """Its sign says which way the object looks."""
    phase: float
    """How far the action has gone: the spread of legs, the beat of wings."""
    variant: float
    """Small differences of build: ears, windows, sails, crowns."""
    shade: float


def latents(scene: Scene) -> NDArray[np.float32]:
    """Uniform in [-1, 1], shape (LATENT_SIZE,). With what the scene says in words it determines the picture.

    The numbers are independent of each other and of the words, so a generator can draw them at random.
    """
    return np.random.default_rng(scene.seed).uniform(-1, 1, LATENT_SIZE).astype(np.float32)


def split_latents(vector: NDArray[np.float32]) -> tuple[list[float], list[Instance]]:
    """The background's numbers, and one `Instance` for each object that may be drawn."""
    values = vector.tolist()
    rest = values[BACKGROUND_SIZE:]
    instances = [Instance(*rest[i * INSTANCE_SIZE : (i + 1) * INSTANCE_SIZE]) for i in range(INSTANCES)]
    return values[:BACKGROUND_SIZE], instances
