"""Whether models say so when a picture is not of the drawn world: noise, drawings of nothing, pages, photographs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data as bundled
from sklearn.datasets import load_sample_images

from tuwen.engine import Pixels
from workers.engines.builtin import as_images
from workers.lab.evaluation.contestants import Contestants
from workers.lab.evaluation.intervals import mean
from workers.lab.training.data import Pictures
from workers.lab.training.measures import auroc
from workers.lab.training.outliers import FAMILIES, HELD_OUT
from workers.models.describer import Describer

SIDE = 64
CROPS = 12
"""Pieces of each photograph, at all scales."""
SKIMAGE = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
)
SKIMAGE_FILES = ("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg")
TEXT = ("page.png", "text.png")


def photographs() -> list[Pixels]:
    """Photographs that come with scikit-learn and scikit-image, uint8 RGB of any size: nothing is downloaded."""
    found = [np.asarray(image) for image in load_sample_images().images]
    found += [np.asarray(getattr(bundled, name)()) for name in SKIMAGE]
    return [_rgb(image) for image in [*found, *map(_load, SKIMAGE_FILES)]]


def pages() -> list[Pixels]:
    """Photographed and scanned text."""
    return [_rgb(_load(name)) for name in TEXT]


def _load(name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO((files("skimage") / "data" / name).read_bytes())))


def _rgb(image: NDArray[np.uint8]) -> Pixels:
    return np.ascontiguousarray(np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3])


def crops(images: Sequence[Pixels], each: int, seed: int) -> list[Pixels]:
    """Squares cut out of pictures, at least 64 pixels wide, the whole picture's shorter side at most."""
    rng = np.random.default_rng(seed)
    cut = []
    for image in images:
        height, width = image.shape[:2]
        for _ in range(each):
            side = int(rng.integers(SIDE, min(height, width) + 1))
            y = int(rng.integers(height - side + 1))
            x = int(rng.integers(width - side + 1))
            square = Image.fromarray(image[y : y + side, x : x + side])
            cut.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return cut


def strangers(count: int, drawn: NDArray[np.uint8], seed: int = 31) -> dict[str, list[Pixels]]:
    """Pictures from outside by their kind; `drawn`, (n, 64, 64, 3), are what some of them are made from."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Pixels]] = {}
    for name, make in {**FAMILIES, **HELD_OUT}.items():
        found[name] = [make(rng, SIDE, drawn[i % len(drawn)]) for i in range(count)]
    found["photographs"] = crops(photographs(), CROPS, seed)
    found["scanned text"] = crops(pages(), CROPS, seed)
    return found


@torch.no_grad()
def _logits(model: Any, pictures: Sequence[Pixels], device: str, size: int = 64) -> NDArray[np.float64]:
    """How much a recogniser or describer takes each picture for one of the drawn world."""
    recognizer = model.eyes.recognizer if isinstance(model, Describer) else model
    parts = [recognizer(as_images(pictures[i : i + size], device)).domain for i in range(0, len(pictures), size)]
    return torch.cat(parts).float().cpu().numpy().astype(float)


def figures(inside: Pictures, count: int, contestants: Contestants) -> dict[str, Any]:
    """Return the area under the ROC curve for each kind of stranger, and what users are told, by model."""
    outside = strangers(count, inside.pixels)
    drawn = list(inside.pixels)
    return {
        "recognizer": _measure(contestants.recognizer, contestants.recognize, drawn, outside),
        "describer": _measure(contestants.describer, lambda p: contestants.describe(p, "en"), drawn, outside),
    }


def _measure(engine: Any, ask: Any, drawn: list[Pixels], outside: dict[str, list[Pixels]]) -> dict[str, Any]:
    known = _logits(engine.model, drawn, engine.device)
    answers = ask(drawn)
    found: dict[str, Any] = {"drawn": _answers(answers)}
    every: list[NDArray[np.float64]] = []
    for name, pictures in outside.items():
        logits = _logits(engine.model, pictures, engine.device)
        every.append(logits)
        found[name] = {"auroc": auroc(known, logits), **_answers(ask(pictures))}
    kinds = [found[name]["auroc"] for name in outside]
    unmet = [found[name]["auroc"] for name in outside if name not in FAMILIES]
    return {
        "auroc": auroc(known, np.concatenate(every)),
        "auroc_mean_of_kinds": float(np.mean(kinds)),
        "auroc_kinds_never_met": float(np.mean(unmet)),
        "kinds": found,
    }


def _answers(results: Sequence[Any]) -> dict[str, Any]:
    return {
        "flagged": asdict(mean([result.out_of_domain for result in results])),
        "confidence": asdict(mean([result.confidence for result in results])),
    }
