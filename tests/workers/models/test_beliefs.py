"""What a recogniser believes of a text: each statement by itself, and nothing of what is left unsaid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.scenes import EXAMPLE
from workers.models.beliefs import SURE, Beliefs, pool
from workers.models.recognizer import PAIRS, Reading
from workers.scenes.grammar import Scene, Thing, caption, edit
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import graph, parse

BOTH = Scene((Thing("cat", "black", None, "small", 1), Thing("dog", "white", "sleeping", "large", 1)), "room", "left")


def reading(scene: Scene, sure: float = 9.0) -> Reading:
    """What a recogniser would read of the scene, as logits of ±`sure`."""
    objects = KEYS["object"]
    shapes = {"colour": 8, "action": 7, "size": 2, "count": 4}
    attributes = {role: torch.full((1, len(objects), width), -sure) for role, width in shapes.items()}
    presence = torch.full((1, len(objects)), -sure)
    for thing in scene.things:
        k = objects.index(thing.object)
        presence[0, k] = sure
        attributes["colour"][0, k, KEYS["colour"].index(thing.colour)] = sure
        attributes["action"][0, k, 1 + KEYS["action"].index(thing.action) if thing.action else 0] = sure
        attributes["size"][0, k, KEYS["size"].index(thing.size)] = sure
        attributes["count"][0, k, thing.count - 1] = sure
    place = torch.full((1, len(KEYS["place"])), -sure)
    place[0, KEYS["place"].index(scene.place)] = sure
    relation = torch.full((1, len(PAIRS), len(KEYS["relation"])), -sure)
    if scene.relation:
        pair = tuple(objects.index(thing.object) for thing in scene.things)
        relation[0, PAIRS.index(pair), KEYS["relation"].index(scene.relation)] = sure  # type: ignore[arg-type]
    nothing = torch.zeros(1)
    return Reading(
        presence, **attributes, place=place, relation=relation, domain=nothing + sure, evidence=nothing, gaze=nothing,
        tokens=nothing,
    )  # fmt: skip


@pytest.mark.parametrize("scene", [EXAMPLE, BOTH])
@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("style", ["short", "detailed", "tags"])
def test_what_is_there_is_believed_however_it_is_said(scene, language, style):
    assert Beliefs(reading(scene)).log_p(0, parse(caption(scene, language, style))) > math.log(0.99)


@pytest.mark.parametrize(
    "lie",
    [
        "a black dog jumping on the grass",
        "a white cat jumping on the grass",
        "a black cat sleeping on the grass",
        "a small black cat jumping on the grass",
        "two black cats jumping on the grass",
        "a black cat jumping in the snow",
        "a black cat and a house",
        "黑色的猫在雪地上",
    ],
)
def test_one_wrong_word_is_enough(lie):
    assert Beliefs(reading(EXAMPLE)).log_p(0, parse(lie)) < math.log(0.01)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a cat to the left of a dog", True),
        ("a dog to the right of a cat", True),
        ("a dog to the left of a cat", False),
        ("a cat above a dog", False),
        ("two cats and a dog", False),
    ],
)
def test_a_relation_holds_both_ways_round(text, holds):
    assert (Beliefs(reading(BOTH)).log_p(0, parse(text)) > math.log(0.5)) is holds


def test_every_edit_is_less_probable_than_the_truth():
    rng = np.random.default_rng(0)
    beliefs = Beliefs(reading(BOTH))
    truth = beliefs.log_p(0, graph(BOTH))
    assert all(beliefs.log_p(0, graph(edit(BOTH, rng))) < truth - 5 for _ in range(50))


def test_less_said_is_more_probable_and_nothing_said_is_no_opinion():
    beliefs = Beliefs(reading(EXAMPLE, sure=2.0))
    probabilities = [beliefs.log_p(0, parse(text)) for text in ("a cat", "a black cat", "a black cat on the grass")]
    assert probabilities == sorted(probabilities, reverse=True)
    for text in ("something else", "red", "a black unicorn on the grass"):
        assert math.isnan(beliefs.log_p(0, parse(text)))


def test_a_pool_is_the_mean_of_those_who_have_an_opinion():
    one, other = torch.tensor([2.0, -3.0, 1e4]), torch.tensor([4.0, torch.nan, -1.0])
    assert pool(one, other).tolist() == [3.0, -3.0, (SURE - 1) / 2]
