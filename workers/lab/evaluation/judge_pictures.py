"""Pictures for training the judge, with all that is in them.

They are its own: other seeds than the models' data, every combination of object, colour and action (it is no
contestant), and a third of them no caption of the drawn world could describe: any number of any objects anywhere, so
that it finds things by what they look like and not by where scenes have them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from workers.lab.evaluation.judge import ROLES, SIDE
from workers.lab.evaluation.sighting import seen_in
from workers.lab.training.data import blur
from workers.lab.world.latents import LATENT_SIZE, latents, split_latents
from workers.lab.world.render import Placed, draw, layout
from workers.scenes.grammar import Thing, pick, possible_actions, sample_scene
from workers.scenes.lexicon import KEYS

log = logging.getLogger("workers.lab.evaluation")

MOST_OBJECTS = 6
CHUNK = 500
FREE = 1 / 3
"""Share of the pictures that follow no grammar."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pictures with all that is in them."""

    pixels: NDArray[np.uint8]
    """(count, 64, 64, 3)"""
    boxes: NDArray[np.float32]
    """(count, MOST_OBJECTS, 4) in shares of the picture; zeros where there is no object."""
    values: NDArray[np.int64]
    """(count, MOST_OBJECTS, roles), an index into `VALUES` each; -1 where there is no object or nothing to say."""
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, count: int) -> Labelled:
        """The first `count` pictures."""
        return Labelled(self.pixels[:count], self.boxes[:count], self.values[:count], self.places[:count])


def arrange(rng: np.random.Generator) -> tuple[str, list[Placed]]:
    """Up to six objects anywhere, in any mixture, hardly hiding each other; those further back first."""
    place = pick(rng, KEYS["place"])
    wanted = int(rng.integers(1, MOST_OBJECTS + 1))
    largest = 0.75 / wanted**0.5
    same = pick(rng, KEYS["object"]) if rng.random() < 0.4 else None
    placed: list[Placed] = []
    for _ in range(4 * wanted):
        object_ = same or pick(rng, KEYS["object"])
        thing = Thing(object_, pick(rng, KEYS["colour"]), pick(rng, possible_actions(object_, place)))
        instance = split_latents(rng.uniform(-1, 1, LATENT_SIZE).astype(np.float32))[1][0]
        height = float(rng.uniform(0.22, max(0.26, largest)))
        new = Placed(
            thing,
            instance,
            float(rng.uniform(0.1, 0.9)),
            float(rng.uniform(0.35, 0.97)),
            height,
        )
        left, top, right, bottom = new.box
        inside = min(left, top) > 0.01 and max(right, bottom) < 0.99 and right - left < 0.6
        if inside and all(_apart(new.box, other.box) for other in placed):
            placed.append(new)
        if len(placed) == wanted:
            break
    return place, sorted(placed, key=lambda each: each.y)


def _apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes share at most a tenth of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width <= 0 or height <= 0 or width * height <= 0.1 * smaller


def compose(rng: np.random.Generator) -> tuple[str, list[float], list[Placed], bool]:
    """Place, background and objects of one training picture, and whether sizes mean something in it."""
    if rng.random() < FREE:
        background = rng.uniform(-1, 1, LATENT_SIZE).astype(np.float32)
        place, placed = arrange(rng)
        return place, split_latents(background)[0], placed, False
    # Pictures of the test splits are told by their seeds: none of them is met here.
    scene = replace(
        sample_scene(rng, "unseen" if rng.random() < 0.3 else "train"),
        seed=int(rng.integers(2**48)) * 4,
    )
    vector = latents(scene)
    return scene.place, split_latents(vector)[0], layout(scene, vector), True


def _chunk(task: tuple[int, int]) -> Labelled:
    rng = np.random.default_rng(task)
    pixels = np.empty((CHUNK, SIDE, SIDE, 3), np.uint8)
    boxes = np.zeros((CHUNK, MOST_OBJECTS, 4), np.float32)
    values = np.full((CHUNK, MOST_OBJECTS, len(ROLES)), -1, np.int64)
    places = np.empty(CHUNK, np.int64)
    for i in range(CHUNK):
        place, background, placed, sized = compose(rng)
        pixels[i], places[i] = draw(place, background, placed, SIDE), KEYS["place"].index(place)
        for k, each in enumerate(seen_in(place, placed).detections):
            boxes[i, k] = each.box
            values[i, k] = [int(each.chances[role].argmax()) if sized or role != "size" else -1 for role in ROLES]
    return Labelled(pixels, boxes, values, places)


def draw_labelled(count: int, seed: int, cache: Path, processes: int = 1) -> Labelled:
    """`count` pictures (a multiple of 500), drawn by `processes` and kept in the folder `cache`."""
    path = cache / f"judge-{count}-{seed}.npz"
    if not path.exists():
        log.info("drawing %d pictures to %s", count, path)
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(_chunk, [(seed, chunk) for chunk in range(count // CHUNK)]))
        names = ("pixels", "boxes", "values", "places")
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        whole: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        np.savez(unfinished, **whole)
        unfinished.rename(path)
    with np.load(path) as stored:
        return Labelled(stored["pixels"], stored["boxes"], stored["values"], stored["places"])


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Softer, noisier, darker, paler: each to its own degree. Half of the pictures stay as they are.

    (B, 3, 64, 64) in [-1, 1] → the same.
    """
    count = len(images)
    side = images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32))

    soft = blur(images)
    coarse = interpolate(avg_pool2d(images, 2), size=(side, side), mode="bilinear")
    softer = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, soft, coarse)
    softness = uniform(-0.5, 1, 1, 1, 1).clamp(min=0)
    changed = torch.lerp(images, softer, softness)
    contrast = uniform(0.75, 1.1, 1, 1, 1)
    changed = changed * contrast + uniform(-0.12, 0.08, 3, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    noisiness = uniform(-0.1, 0.1, 1, 1, 1).clamp(min=0)
    changed = (changed + noise * noisiness).clamp(-1, 1)
    degraded = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, changed, images)
    return degraded.contiguous(memory_format=torch.channels_last)
