"""What the models learn from: random scenes, their pictures, and changes that keep their captions true."""

from __future__ import annotations

import hashlib
import logging
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from workers.lab.world.render import render
from workers.scenes.grammar import SPLITS, Scene, Split, mirrored, sample_scene

log = logging.getLogger(__name__)

CHUNK = 500
"""Scenes that one random stream draws and one process renders at a time."""


class HasPixels(Protocol):
    """Pictures of any origin."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The pictures, uint8 (count, size, size, 3)."""
        ...


@dataclass(frozen=True, slots=True)
class Pictures:
    """Scenes of one split with their pictures, uint8 (count, size, size, 3)."""

    scenes: Sequence[Scene]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, rows: NDArray[np.intp]) -> Pictures:
        """The pictures with these numbers."""
        scenes = [self.scenes[row] for row in rows]
        return Pictures(scenes, self.pixels[rows])


def sample_scenes(split: Split, count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of the split's stream with this seed; a longer stream starts with the same ones."""
    scenes: list[Scene] = []
    for number in range(_count_chunks(count)):
        scenes += _sample_chunk(split, seed, number)
    return scenes[:count]


def _count_chunks(count: int) -> int:
    return math.ceil(count / CHUNK)


def _sample_chunk(split: Split, seed: int, number: int) -> list[Scene]:
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    return [sample_scene(rng, split) for _ in range(CHUNK)]


def draw_pictures(
    split: Split,
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    cache: Path | None = None,
    processes: int = 1,
) -> Pictures:
    """Scenes and their pictures, rendered by `processes` worker processes, or read back from the folder `cache`.

    The cache is a memory-mapped file for each split, count, seed and size, and for each version of the drawing code, so
    there may be more pictures than fit into memory. Where it was killed while rendering, it starts again.
    """
    scenes = sample_scenes(split, count, seed)
    if cache is None:
        return Pictures(scenes, np.stack([render(scene, size) for scene in scenes]))
    path = cache / f"{split}-{count}-{seed}-{size}-{_version(scenes)}.npy"
    if not path.exists():
        log.info("rendering %d scenes to %s", count, path)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        pixels = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, size, size, 3))
        _render_chunks(pixels, split, seed, processes)
        pixels.flush()
        unfinished.rename(path)
    return Pictures(scenes, np.load(path, mmap_mode="r"))


def _render_chunks(pixels: NDArray[np.uint8], split: Split, seed: int, processes: int) -> None:
    """Fills `pixels`, (count, size, size, 3), with the pictures of the split's first scenes."""
    count, size = pixels.shape[:2]
    tasks = [(split, seed, number, size) for number in range(_count_chunks(count))]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        start = 0
        for rendered in pool.map(_render_chunk, tasks):
            pixels[start : start + CHUNK] = rendered[: count - start]
            start += CHUNK


def _render_chunk(task: tuple[Split, int, int, int]) -> NDArray[np.uint8]:
    split, seed, number, size = task
    return np.stack([render(scene, size) for scene in _sample_chunk(split, seed, number)])


def _version(scenes: Sequence[Scene]) -> str:
    """Changes when scenes or their pictures do, as far as a few dozen of them show it."""
    digest = hashlib.sha256(repr(scenes[-1]).encode())
    for scene in scenes[:48]:
        digest.update(repr(scene).encode())
        digest.update(render(scene, 32).tobytes())
    return digest.hexdigest()[:12]


def cut(count: int, size: int) -> list[slice]:
    """The rows 0 … count − 1 in parts of at most `size`, one after the other."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """Convert uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.array(pixels, order="C")).to(device).permute(0, 3, 1, 2)
    return images.float().div_(127.5).sub_(1)


def draw_batch(data: Pictures, size: int, rng: np.random.Generator) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes and pictures, uint8 (size, H, W, 3), picked at random; half of them are mirrored, scene and picture."""
    picked = np.sort(rng.integers(len(data), size=size))
    pixels = np.ascontiguousarray(data.pixels[picked])
    flipped = rng.random(size) < 0.5
    pixels[flipped] = pixels[flipped, :, ::-1]
    scenes = []
    for row, flip in zip(picked, flipped, strict=True):
        scene = data.scenes[row]
        scenes.append(mirrored(scene) if flip else scene)
    return scenes, pixels


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Changes the place, light, sharpness and noise of each picture to a random degree; no caption becomes false by it.

    The changes stand for other renderers, cameras and generators. `images` are (B, 3, H, W) in [-1, 1]; so is the
    result, channels last in memory.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        numbers = rng.uniform(low, high, (count, *shape)).astype(np.float32)
        return torch.from_numpy(numbers).to(images.device)

    images = _shift(images, rng)
    softness = uniform(-1.0, 0.8, 1, 1, 1).clamp(min=0)
    images = torch.lerp(images, blur(images), softness)
    # Rather darker than brighter, because what is drawn in white must not be washed out.
    contrast = uniform(0.7, 1.1, 1, 1, 1)
    shade = uniform(-0.05, 0.2, 3, 1, 1)
    images = (images - 1) * contrast + 1 - shade
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    noisiness = uniform(-0.08, 0.08, 1, 1, 1).clamp(min=0)
    images = images + noise * noisiness
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def _shift(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Moves each picture by up to a twentieth of its height; its edges are repeated."""
    count, _, height, width = images.shape
    margin = height // 20
    padded = pad(images, (margin, margin, margin, margin), mode="replicate")
    shifts = rng.integers(0, 2 * margin + 1, (count, 2)).tolist()
    moved = []
    for picture, (y, x) in zip(padded, shifts, strict=True):
        moved.append(picture[:, y : y + height, x : x + width])
    return torch.stack(moved)


def blur(images: Tensor) -> Tensor:
    """Blur pictures (B, 3, H, W): each pixel becomes the mean of its 3×3 neighbourhood."""
    return avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
