"""What a prompt leaves open is natural, and what it says stays."""

from __future__ import annotations

import pytest

from workers.scenes.completing import USUAL_COLOURS, USUAL_PLACES, Scenery, complete
from workers.scenes.grammar import SLOTS, Scene, Thing, slots
from workers.scenes.lexicon import KEYS
from workers.scenes.understanding import understand

SEEDS = range(30)


def drawn(text: str) -> list[Scenery]:
    return [complete(understand(text), seed) for seed in SEEDS]


@pytest.mark.parametrize("object_", KEYS["object"])
def test_a_thing_without_more_has_its_usual_colours_is_at_rest_and_where_it_belongs(object_: str) -> None:
    found = drawn(f"a {object_}")
    assert {scenery.things[0].colour for scenery in found} <= set(USUAL_COLOURS[object_])
    assert {scenery.place for scenery in found} <= set(USUAL_PLACES[object_])
    # A fish in the water swims.
    assert {scenery.things[0].action for scenery in found} == {"swimming" if object_ == "fish" else None}


@pytest.mark.parametrize(
    "text", ["a black cat sleeping in a room", "两只黑猫在草地上跑", "a white dog left of a red car"]
)
def test_no_seed_changes_what_is_said(text: str) -> None:
    asked = understand(text)
    for scenery in drawn(text):
        for said, shown in zip(asked.things, scenery.things, strict=True):
            assert (said.object, said.count) == (shown.object, shown.count)
            assert all(getattr(said, role) in (None, getattr(shown, role)) for role in ("colour", "action", "size"))
        assert asked.place in (None, scenery.place)
        assert asked.relation in (None, scenery.relation)


def test_the_same_seed_decides_the_same() -> None:
    assert drawn("a cat and a dog") == drawn("a cat and a dog")


def test_a_said_action_finds_a_place_where_it_is_done() -> None:
    assert {scenery.place for scenery in drawn("a dog swimming")} == {"water"}
    assert "water" not in {scenery.place for scenery in drawn("a bird flying")}


def test_what_is_denied_is_not_chosen() -> None:
    assert "black" not in {scenery.things[0].colour for scenery in drawn("a cat that is not black")}
    assert {scenery.things[0].colour for scenery in drawn("a tree that is not green")} <= set(KEYS["colour"]) - {
        "green"
    }
    assert "grass" not in {scenery.place for scenery in drawn("a cat, not on the grass")}


def test_things_are_told_apart_by_their_colours() -> None:
    for scenery in drawn("a cat and a dog"):
        assert scenery.things[0].colour != scenery.things[1].colour
    assert {scenery.relation for scenery in drawn("a cat and a dog")} == {"left", "right"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a black cat on the lawn", "a black cat on the grass"),
        ("猫是黑色的，在草地上跳", "一只黑色的猫在草地上跳跃"),
        ("two black kittens and a white dog, beach", "two black cats and a white dog on the sand"),
        ("狗的左边有一只黑猫，狗是白色的，在雪地里", "雪地上，一只白色的狗在一只黑色的猫的右边"),
        ("the beach", "the sand"),
        ("夜晚的街道", "夜晚的街道"),
    ],
)
def test_what_is_drawn_is_put_into_the_grammars_words(text: str, words: str) -> None:
    assert complete(understand(text), 1).text == words


def test_the_columns_of_a_plan() -> None:
    scene = Scene((Thing("dog", "white"), Thing("cat", "black", "jumping", "small")), "grass", "left")
    asked = "a large white dog to the left of a small black jumping cat on the grass"
    assert complete(understand(asked), 5).slots().tolist() == slots(scene).tolist()
    two = dict(zip(SLOTS, complete(understand("a white dog and two black cats"), 5).slots(), strict=True))
    assert (two["object_1"], two["count_1"], two["object_2"], two["count_2"]) == (1, 2, 2, 1)
    empty = dict(zip(SLOTS, complete(understand("snow"), 5).slots(), strict=True))
    assert {name for name, value in empty.items() if value} == {"place"}


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("a dog jumping", "no training picture shows a dog jumping"),
        ("a cat swimming on the grass", "no training picture shows a cat swimming"),
        ("a rabbit swimming on the grass", "no training picture shows a rabbit swimming on the grass"),
        (
            "three cats to the left of a dog",
            "where the groups are to each other was left out: that works for at most two of each",
        ),
    ],
)
def test_doubts_are_told(text: str, doubt: str) -> None:
    assert any(doubt in warning for warning in complete(understand(text), 1).warnings)
