"""Training on own pictures: the source is read, the model trained, and its weights stored with the words it learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from tuwen.engine import Pixels
from tuwen.errors import ConfigurationError
from tuwen.jobs import Language
from workers.lab.training import describer as drawn_describer
from workers.lab.training import distributed
from workers.lab.training.frozen import start_from
from workers.lab.training.options import TrainOptions
from workers.lab.training.own import describer, generator, matcher, recognizer
from workers.lab.training.own.data import Examples, SourceOptions, read_own_data
from workers.lab.training.runs import SHIPPED, Material, complete, make_recipe
from workers.lab.training.trainable import Trainable
from workers.models.describer import Describer
from workers.models.recognizer import Labels
from workers.models.text import Vocabulary

TRAINABLES: Mapping[str, Callable[[Vocabulary, Labels], Trainable[Examples]]] = {
    "recognizer": recognizer.trainable,
    "describer": describer.trainable,
    "matcher": matcher.trainable,
    "generator": generator.trainable,
}
"""How each model is trained that knows these words and these labels."""
LEARN_LABELS = frozenset({"recognizer", "generator"})
"""Models that learn what is to be seen in a picture."""
LEARN_WORDS = frozenset({"describer", "matcher", "generator"})
"""Models that read or write text, and so have a vocabulary."""


def train_own(options: TrainOptions) -> bool:
    """Trains one model on own pictures; when the run is finished, its weights are measured and stored.

    Returns:
        Whether the run is finished.

    Raises:
        ConfigurationError: no source is given, or nothing can be learnt from it.
    """
    recipe = make_recipe(options)
    folder = options.folder / "data"
    with distributed.first_goes_first():
        data = read_own_data(_source_options(options), folder, partial(describe_pictures, device=options.device))
    train = data.of("train")
    words = Vocabulary.of(train.texts)
    facts: dict[str, Any] = {
        "data": json.loads((folder / "counts.json").read_text()),
        "vocabulary": words.own if options.model in LEARN_WORDS else (),
    }
    if options.model in LEARN_LABELS:
        facts["labels"] = data.labels
    material = Material(
        train=train,
        validation=partial(data.of, "validation"),
        folded=data,
        calibration=partial(data.of, "validation"),
        tests=lambda: {"test": data.of("test")},
        facts=facts,
    )
    trainable = TRAINABLES[options.model](words, data.labels)
    return complete(options, recipe, trainable, material)


def _source_options(options: TrainOptions) -> SourceOptions:
    if options.data is None:
        raise ConfigurationError("--data names no source of pictures.", field="data")
    return SourceOptions(
        options.data,
        missing=options.missing,
        captions=options.model not in LEARN_LABELS,
        limit=options.pictures,
        root=options.root,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )


def describe_pictures(pixels: Pixels, language: Language, device: str) -> Sequence[str]:
    """Captions by the shipped describer, one for each picture of uint8 (count, 64, 64, 3)."""
    found = drawn_describer.describe(_shipped_describer(device), pixels, language, "detailed")
    return [text for text, _ in found]


@cache
def _shipped_describer(device: str) -> Describer:
    weights = SHIPPED / "describer.safetensors"
    model = Describer(words=Vocabulary.beside(weights))
    start_from(model, weights)
    return model.to(torch.device(device)).eval()
