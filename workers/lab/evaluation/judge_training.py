"""Training the judge: `python -m workers.lab.evaluation.judge_training --out runs/judge --ship`.

Soft, noisy, dark and faded copies of its pictures stand for what generators make; a few of each batch hold nothing
of the drawn world at all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from workers.lab.evaluation.judge import GRID, ROLES, SIDE, WEIGHTS, Judge, Maps, cells, sight
from workers.lab.evaluation.judge_pictures import Labelled, degrade, draw_labelled
from workers.lab.evaluation.sighting import Detection, Sighting
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.data import cut, to_tensor
from workers.lab.training.loop import Outcome, Validation, add_up, train
from workers.lab.training.outliers import shapes, shuffled
from workers.lab.training.recipe import Recipe

log = logging.getLogger("workers.lab.evaluation")


@dataclass(frozen=True, slots=True)
class JudgeRecipe(Recipe):
    """How the judge is trained."""

    steps: int = 6000
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 250
    batch: int = 32
    empty: int = 2
    """Pictures of each batch that hold no object of the drawn world."""
    seed: int = 7001
    start: str = ""
    """Weights to start from, instead of random ones."""


# ── learning ──────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """Pictures and what is in them, as `Labelled` has it."""

    images: Tensor
    """(B, 3, 64, 64)"""
    boxes: Tensor
    """(B, objects, 4)"""
    values: Tensor
    """(B, objects, roles)"""
    places: Tensor
    """(B,); −1 is not asked for."""


def batches(data: Labelled, recipe: JudgeRecipe) -> Callable[[int], Batch]:
    """The function that makes the batch of a step."""

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        picked = np.sort(rng.integers(len(data), size=recipe.batch))
        pixels = data.pixels[picked].copy()
        boxes = data.boxes[picked].copy()
        values = data.values[picked].copy()
        places = data.places[picked].copy()
        flipped = rng.random(recipe.batch) < 0.5
        pixels[flipped] = pixels[flipped, :, ::-1]
        boxes[flipped] = _mirror(boxes[flipped], values[flipped, :, :1] >= 0)
        for row in range(recipe.empty):
            draw = (shapes, shuffled)[row % 2]
            pixels[row] = draw(rng, SIDE, pixels[row])
            boxes[row] = 0
            values[row] = -1
            places[row] = -1
        images = degrade(to_tensor(pixels), rng)
        return Batch(images, torch.from_numpy(boxes), torch.from_numpy(values), torch.from_numpy(places))

    return batch


def _mirror(boxes: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Boxes (B, objects, 4) as the mirror shows them, where there is an object (B, objects, 1); others stay zero."""
    swapped = boxes[..., [2, 1, 0, 3]]
    return np.where(present, [1, 0, 1, 0] - swapped * [1, -1, 1, -1], 0)


def nearness(boxes: Tensor) -> Tensor:
    """How near each cell is to each object's centre, 1 at the centre: (B, objects, 4) → (B, objects, cells)."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2
    # The cell that holds the centre is exactly 1.
    centre = ((centre * GRID).floor() + 0.5) / GRID
    spread = (0.1 * size).clamp(min=0.6 / GRID)
    distance = (cells() - centre[:, :, None]) / spread[:, :, None]
    return torch.exp(-distance.square().sum(-1) / 2)


def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Focal loss for centres (CenterNet), and at cells near one what is there and where its edges are."""
    _, boxes, values, places = batch
    maps: Maps = model(batch.images)
    near = nearness(boxes) * (values[..., :1] >= 0)
    nearest, owner = near.max(1)
    parts = {"presence": _focal(maps.presence.float(), nearest)}
    weight = nearest * (nearest > 0.3)
    total = weight.sum().clamp(min=1)
    mine = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    middles = cells()
    edges = torch.cat([middles - mine[..., :2], mine[..., 2:] - middles], -1)
    miss = (maps.edges.float() - edges).abs().mean(-1)
    parts["edges"] = 10 * (miss * weight).sum() / total
    for k, role in enumerate(ROLES):
        target = values[..., k].gather(1, owner)
        each = cross_entropy(maps.roles[role].float().mT, target, ignore_index=-1, reduction="none")
        known = weight * (target >= 0)
        parts[role] = (each * weight).sum() / known.sum().clamp(min=1)
    parts["place"] = 0.3 * cross_entropy(maps.place.float(), places, ignore_index=-1)
    return add_up(parts)


def _focal(logits: Tensor, nearest: Tensor) -> Tensor:
    """Zhou et al., 2019, equation 1: mistakes near a centre weigh less, confident cells hardly at all."""
    chance = logits.sigmoid()
    centre = nearest == 1
    right = binary_cross_entropy_with_logits(logits, centre.float(), reduction="none")
    focus = torch.where(centre, (1 - chance).square(), (1 - nearest).pow(4) * chance.square())
    return (focus * right).sum() / centre.sum().clamp(min=1)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def _maps(model: Judge, pixels: NDArray[np.uint8], size: int = 100) -> list[Maps]:
    return [model(to_tensor(pixels[part])) for part in cut(len(pixels), size)]


def figures(model: nn.Module, data: Labelled, threshold: float | None = None) -> dict[str, float]:
    """Shares of pictures whose objects, or places, are all right; `everything`: no mistake but of size."""
    judge = model if isinstance(model, Judge) else None
    if judge is None:
        raise TypeError("these figures are the judge's")
    cut = float(judge.threshold) if threshold is None else threshold
    seen = [sighting for maps in _maps(judge, data.pixels) for sighting in sight(maps, cut)]
    right = [_compare(sighting, data.values[i], data.places[i]) for i, sighting in enumerate(seen)]
    return {name: float(np.mean([each[name] for each in right])) for name in right[0]}


def _likeliest(detection: Detection) -> list[int]:
    """Number of the likeliest value of each role."""
    return [int(detection.chances[role].argmax()) for role in ROLES]


def _compare(sighting: Sighting, values: NDArray[np.int64], place: int) -> dict[str, bool]:
    true = values[values[:, 0] >= 0].tolist()
    found = [_likeliest(detection) for detection in sighting.detections]

    def same(*columns: int) -> bool:
        """Whether these columns have the same rows, in any order."""
        mine = sorted([row[column] for column in columns] for row in found)
        theirs = sorted([row[column] for column in columns] for row in true)
        return mine == theirs

    right_place = int(sighting.places.argmax()) == place
    return {
        "number": len(found) == len(true),
        "objects": same(0),
        "colours": same(0, 1),
        "actions": same(0, 2),
        "place": right_place,
        "everything": same(0, 1, 2) and right_place,
    }


def calibrate(model: Judge, data: Labelled) -> None:
    """Choose the threshold with the most pictures that have the right number of objects."""
    cuts = np.arange(0.15, 0.8, 0.05)
    scores = [figures(model, data, float(cut))["objects"] for cut in cuts]
    model.threshold.fill_(float(cuts[int(np.argmax(scores))]))


def train_judge(data: Labelled, validation: Labelled, run: Path, recipe: JudgeRecipe, minutes: float | None) -> Outcome:
    """Trains the judge, or continues its run in the folder `run`."""
    torch.manual_seed(recipe.seed)
    model = Judge()
    if recipe.start:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(Path(recipe.start)).items()})

    def measure(average: nn.Module) -> dict[str, float]:
        return figures(average, validation.first(600))

    judged = Validation(measure, "everything")
    return train(model, loss, batches(data, recipe), recipe, run, validation=judged, minutes=minutes)


def finish(run: Path, validation: Labelled, test: Labelled, data: dict[str, int], ship: bool) -> None:
    """Measure the kept weights as they are stored, in half precision, and write them with their figures."""
    source = run / "weights.safetensors"
    model = Judge()
    model.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in load_file(source).items()})
    model.eval()
    calibrate(model, validation)
    facts = json.loads(source.with_suffix(".json").read_text())
    facts["command"] = shlex.join(["python", "-m", "workers.lab.evaluation.judge_training", *sys.argv[1:]])
    facts |= data | {"judged": len(test)}
    facts |= {"metrics": {f"test/{k}": v for k, v in figures(model, test).items()}}
    target = WEIGHTS if ship else run / "shipped.safetensors"
    save_weights(target, model.state_dict(), facts, half=True)
    log.info("%s\n%s", target, json.dumps(facts["metrics"], indent=2))


def main() -> None:
    """Trains the judge as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m workers.lab.evaluation.judge_training", description=__doc__)
    default = JudgeRecipe()
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rate", type=float, default=default.learning_rate, help="peak learning rate")
    parser.add_argument("--start", default="", help="weights to start from")
    parser.add_argument("--pictures", type=int, default=40_000, help="training pictures to draw")
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="seed of the weights and the batches; the seed of the data is one more",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/pictures"), help="folder that keeps drawn pictures")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--now",
        action="store_true",
        help="write what there is, even if training is not finished",
    )
    parser.add_argument("--ship", action="store_true", help="put the weights where evaluation finds them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = JudgeRecipe(steps=options.steps, learning_rate=options.rate, start=options.start, seed=options.seed)
    validation, test = (draw_labelled(2000, options.seed + k, options.cache) for k in (2, 3))
    finished = options.now
    if not options.now:
        data = draw_labelled(options.pictures, options.seed + 1, options.cache, options.threads)
        finished = train_judge(data, validation, options.out, recipe, options.minutes).finished
    if finished:
        finish(
            options.out,
            validation,
            test,
            {"data_seed": options.seed + 1, "pictures": options.pictures},
            options.ship,
        )


if __name__ == "__main__":
    main()
