"""Training on the drawn world: pictures are drawn, a model is trained, its weights are measured on the test splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from workers.lab.training import describer, distributed, generator, matcher, recognizer
from workers.lab.training.data import Pictures, draw_pictures
from workers.lab.training.options import TrainOptions
from workers.lab.training.runs import Material, complete, make_recipe
from workers.lab.training.trainable import Trainable
from workers.scenes.grammar import Split

RENDERED = 2000
"""Pictures that are rendered of each split but the training one."""
PICTURES = 20_000
"""Training pictures, where the command line does not say how many."""

TRAINABLES: Mapping[str, Trainable[Pictures]] = {
    "recognizer": recognizer.TRAINABLE,
    "describer": describer.TRAINABLE,
    "matcher": matcher.TRAINABLE,
    "generator": generator.TRAINABLE,
}


def train_drawn(options: TrainOptions) -> bool:
    """Trains one model on drawn pictures; when the run is finished, its weights are measured and stored.

    Returns:
        Whether the run is finished.
    """
    recipe = make_recipe(options)
    draw = partial(_draw, options)
    with distributed.first_goes_first():
        train = draw("train", options.pictures or PICTURES)
        validation = draw("validation", options.checked)

    def tests() -> Mapping[str, Pictures]:
        return {"seen": draw("seen", options.judged), "unseen": draw("unseen", options.judged)}

    material = Material(
        train=train,
        validation=lambda: validation,
        folded=train,
        calibration=partial(draw, "validation", options.judged),
        tests=tests,
        facts={
            "data_seed": options.data_seed,
            "pictures": len(train),
            "judged": options.judged,
        },
    )
    return complete(options, recipe, TRAINABLES[options.model], material)


def _draw(options: TrainOptions, split: Split, count: int) -> Pictures:
    """The first `count` pictures of a split, from the cache where they were rendered before."""
    # To measure on fewer takes the first of these, so that they need not be rendered again.
    rendered = count if split == "train" else max(count, RENDERED)
    processes = max(1, (os.cpu_count() or 1) - 1)
    data = draw_pictures(split, rendered, seed=options.data_seed, cache=options.cache, processes=processes)
    return Pictures(data.scenes[:count], data.pixels[:count])
