"""What the models learn from: scenes drawn by lot, their pictures, and changes that keep their captions true."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Pictures:
    """Scenes of one split with their pictures, uint8 (count, size, size, 3)."""

    scenes: Sequence[Scene]
    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, rows: NDArray[np.intp]) -> Pictures:
        return Pictures([self.scenes[row] for row in rows], self.pixels[rows])


def scenes(split: Split, count: int, seed: int) -> list[Scene]:
    """The first `count` scenes of the split's stream with this seed; a longer stream starts with the same ones."""
    drawn: list[Scene] = []
    for chunk in range(-(-count // CHUNK)):
        drawn += _chunk(split, seed, chunk)
    return drawn[:count]


def _chunk(split: Split, seed: int, chunk: int) -> list[Scene]:
    rng = np.random.default_rng([seed, SPLITS.index(split), chunk])
    return [sample_scene(rng, split) for _ in range(CHUNK)]


def pictures(
    split: Split, count: int, *, seed: int = 0, size: int = 64, cache: Path | None = None, processes: int = 1
) -> Pictures:
    """Scenes and their pictures, rendered by `processes` worker processes, or read back from the folder `cache`.

    The cache is a memory-mapped file for each split, count, seed and size, and for each state of the drawing, so
    there may be more pictures than fit into memory. Killed while rendering, it starts anew.
    """
    drawn = scenes(split, count, seed)
    if cache is None:
        return Pictures(drawn, np.stack([render(scene, size) for scene in drawn]))
    path = cache / f"{split}-{count}-{seed}-{size}-{_version(drawn)}.npy"
    if not path.exists():
        log.info("rendering %d scenes to %s", count, path)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        pixels = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, size, size, 3))
        tasks = [(split, seed, chunk, size) for chunk in range(-(-count // CHUNK))]
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for task, rendered in zip(tasks, pool.map(_render_chunk, tasks), strict=True):
                start = task[2] * CHUNK
                pixels[start : start + CHUNK] = rendered[: count - start]
        pixels.flush()
        unfinished.rename(path)
    return Pictures(drawn, np.load(path, mmap_mode="r"))


def _render_chunk(task: tuple[Split, int, int, int]) -> NDArray[np.uint8]:
    split, seed, chunk, size = task
    return np.stack([render(scene, size) for scene in _chunk(split, seed, chunk)])


def _version(drawn: Sequence[Scene]) -> str:
    """Changes when scenes or their pictures do, as far as a few dozen of them tell."""
    digest = hashlib.sha256(repr(drawn[-1]).encode())
    for scene in drawn[:48]:
        digest.update(repr(scene).encode() + render(scene, 32).tobytes())
    return digest.hexdigest()[:12]


def to_tensor(pixels: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) → float (B, 3, H, W) in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.array(pixels, order="C")).to(device).permute(0, 3, 1, 2)
    return images.float().div_(127.5).sub_(1)


def draw_batch(data: Pictures, size: int, rng: np.random.Generator) -> tuple[list[Scene], NDArray[np.uint8]]:
    """`size` pictures by lot, half of them mirrored together with what their scenes say."""
    picked = np.sort(rng.integers(len(data), size=size))
    pixels = np.ascontiguousarray(data.pixels[picked])
    mirror = rng.random(size) < 0.5
    pixels[mirror] = pixels[mirror, :, ::-1]
    chosen = [data.scenes[i] for i in picked]
    return [mirrored(scene) if flip else scene for scene, flip in zip(chosen, mirror, strict=True)], pixels


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Shifts, light, blur and noise, each to its own degree, none of which makes a caption false.

    `images` are (B, 3, H, W) in [-1, 1]; so is the result. They stand for other renderers, cameras and generators.
    """
    count, _, height, width = images.shape

    def lot(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32)).to(images.device)

    margin = height // 20
    padded = pad(images, (margin, margin, margin, margin), mode="replicate")
    shifts = rng.integers(0, 2 * margin + 1, (count, 2)).tolist()
    images = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, shifts, strict=True)])
    blurred = avg_pool2d(pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, lot(-1.0, 0.8, 1, 1, 1).clamp(min=0))
    # Rather darker than brighter: what is drawn in white must not be washed out.
    images = (images - 1) * lot(0.7, 1.1, 1, 1, 1) + 1 - lot(-0.05, 0.2, 3, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    images = images + noise * lot(-0.08, 0.08, 1, 1, 1).clamp(min=0)
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
