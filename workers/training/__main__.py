"""Train one of the built-in models: `python -m workers.training recognizer --minutes 10 --out runs/recognizer`.

A run that was cut, by its time budget or otherwise, goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from workers.scenes.grammar import Split
from workers.training import describer, generator, matcher, recognizer
from workers.training.checkpoint import save_weights
from workers.training.data import Pictures, pictures
from workers.training.loop import Outcome
from workers.training.recipe import Recipe

log = logging.getLogger("workers.training")

SHIPPED = Path(__file__).parent.parent / "weights"
RENDERED = 2000
"""Pictures that are rendered of each split but the training one."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """How one of the models is made, trained and judged."""

    recipe: type[Any]
    make: Callable[[Any], nn.Module]
    train: Callable[..., Outcome]
    report: Callable[[Any, dict[Split, Pictures]], dict[str, float]]
    calibrate: Callable[[Any, Pictures], None] = lambda _model, _data: None


MODELS = {
    "recognizer": Trainable(
        recognizer.RecognizerRecipe,
        recognizer.make_recognizer,
        recognizer.train_recognizer,
        recognizer.report,
        recognizer.calibrate,
    ),
    "describer": Trainable(
        describer.DescriberRecipe,
        describer.make_describer,
        describer.train_describer,
        describer.report,
        describer.calibrate,
    ),
    "matcher": Trainable(
        matcher.MatcherRecipe, matcher.make_matcher, matcher.train_matcher, matcher.report, matcher.calibrate
    ),
    "generator": Trainable(
        generator.GeneratorRecipe, generator.make_generator, generator.train_generator, generator.report
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.training", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    parser.add_argument("--steps", type=int, help="length of the whole run")
    parser.add_argument("--batch", type=int, help="pictures a step")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument(
        "--trunk", default="", help="recogniser's weights whose encoder describer and matcher take over"
    )
    parser.add_argument("--start", default="", help="recogniser's weights to start from")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--pictures", type=int, default=20_000, help="training pictures to render")
    parser.add_argument("--checked", type=int, default=500, help="pictures of each validation")
    parser.add_argument("--judged", type=int, default=2000, help="pictures of each split in the final figures")
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/pictures"), help="where rendered pictures are kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ship", action="store_true", help="put the weights where the built-in engines find them")
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    kind = MODELS[options.model].recipe
    given = {name: getattr(options, name) for name in ("steps", "batch") if getattr(options, name) is not None}
    if options.rate is not None:
        given["learning_rate"] = options.rate
    given |= {name: getattr(options, name) for name in ("trunk", "start") if getattr(options, name)}
    recipe: Recipe = kind(seed=options.seed, **given)
    return recipe


def as_stored(tensor: Tensor) -> Tensor:
    return tensor.half().float() if tensor.is_floating_point() else tensor


def finish(options: argparse.Namespace, recipe: Recipe, draw: Callable[[Split, int], Pictures]) -> None:
    """Judge the kept weights as they are stored, in half precision, and write them and their figures."""
    kind = MODELS[options.model]
    model = kind.make(recipe)
    source = options.out / "weights.safetensors"
    model.load_state_dict({name: as_stored(tensor) for name, tensor in load_file(source).items()})
    model.to(options.device).eval()
    kind.calibrate(model, draw("validation", options.judged))
    splits: dict[Split, Pictures] = {"seen": draw("seen", options.judged), "unseen": draw("unseen", options.judged)}
    facts = json.loads(source.with_suffix(".json").read_text())
    facts["command"] = shlex.join(["python", "-m", "workers.training", *sys.argv[1:]])
    facts |= {"data_seed": options.data_seed, "pictures": options.pictures, "judged": options.judged}
    facts["metrics"] |= kind.report(model, splits)
    target = SHIPPED / f"{options.model}.safetensors" if options.ship else options.out / "shipped.safetensors"
    save_weights(target, model.state_dict(), facts, half=True)
    log.info("%s\n%s", target, json.dumps(facts["metrics"], indent=2))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = arguments()
    torch.set_num_threads(options.threads)

    def draw(split: Split, count: int) -> Pictures:
        # Judging on fewer takes the first of these, so that they need not be rendered again.
        rendered = count if split == "train" else max(count, RENDERED)
        processes = max(1, (os.cpu_count() or 1) - 1)
        data = pictures(split, rendered, seed=options.data_seed, cache=options.cache, processes=processes)
        return Pictures(data.scenes[:count], data.pixels[:count])

    recipe = make_recipe(options)
    checked = draw("validation", options.checked)
    outcome = MODELS[options.model].train(
        draw("train", options.pictures), checked, options.out, recipe, minutes=options.minutes, device=options.device
    )
    if outcome.finished:
        finish(options, recipe, draw)
    else:
        log.info("step %d of %d: give the same command again to go on", outcome.step, recipe.steps)


if __name__ == "__main__":
    main()
