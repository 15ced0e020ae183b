"""Scenes, their captions, and captions read back."""

import numpy as np
import pytest

from workers.scenes.grammar import (
    SLOT_SIZES,
    SPLITS,
    UNSEEN_ACTIONS,
    UNSEEN_COLOURS,
    Scene,
    Thing,
    caption,
    edit,
    mirrored,
    possible_actions,
    sample_scene,
    slots,
)
from workers.scenes.lexicon import KEYS
from workers.scenes.parsing import graph, parse

BLACK_CAT = Scene((Thing("cat", "black", "jumping"),), "grass")
STYLES = ("short", "detailed", "tags")


def scenes(split, count, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split) for _ in range(count)]


def test_the_demos_captions_are_in_the_grammar():
    assert caption(BLACK_CAT, "zh", "short") == "一只黑色的猫在草地上跳跃"
    assert caption(BLACK_CAT, "en", "short") == "a black cat jumping on the grass"
    assert not BLACK_CAT.unseen


@pytest.mark.parametrize("split", SPLITS)
def test_unseen_pairs_are_in_every_unseen_scene_and_in_no_other(split):
    for scene in scenes(split, 500):
        pairs = {(t.object, t.colour) for t in scene.things} & UNSEEN_COLOURS
        pairs |= {(t.object, t.action) for t in scene.things} & UNSEEN_ACTIONS
        assert bool(pairs) == (split == "unseen")


def test_every_value_of_every_role_occurs_and_no_picture_is_in_two_splits():
    drawn = scenes("train", 3000)
    seen = np.stack([slots(scene) for scene in drawn])
    assert seen.max(0).tolist() == [size - 1 for size in SLOT_SIZES[:-3]] + [1, 6, 4]
    for i, split in enumerate(SPLITS):
        assert {scene.seed % len(SPLITS) for scene in scenes(split, 100)} == {i}


def test_things_only_do_what_makes_sense():
    for scene in scenes("train", 1000):
        for thing in scene.things:
            assert thing.action in possible_actions(thing.object, scene.place)
        if len(scene.things) == 2:
            assert scene.things[0].object != scene.things[1].object
            assert scene.relation in KEYS["relation"]
            assert all(thing.count == 1 for thing in scene.things)


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("style", STYLES)
def test_a_caption_read_back_says_exactly_what_the_scene_shows(language, style):
    rng = np.random.default_rng(1)
    for scene in scenes("seen", 300) + scenes("unseen", 300):
        text = caption(scene, language, style, rng)
        read = parse(text)
        assert read.facts() == graph(scene).facts(sizes=style != "short"), text
        assert read.unknown == ()


def test_captions_vary_and_omit_but_never_lie():
    rng = np.random.default_rng(2)
    wordings = {caption(BLACK_CAT, "zh", "short", rng) for _ in range(200)}
    assert len(wordings) > 20
    partial = [parse(caption(BLACK_CAT, "en", "tags", rng, omit=0.5)).facts() for _ in range(50)]
    assert all(facts <= graph(BLACK_CAT).facts() for facts in partial)
    assert any(facts < graph(BLACK_CAT).facts() for facts in partial)


def test_an_edit_makes_the_caption_false_and_stays_out_of_unseen_pairs():
    rng = np.random.default_rng(3)
    for scene in scenes("train", 300):
        other = edit(scene, rng)
        assert not other.unseen
        assert not parse(caption(other, "en", "short", rng)).facts() <= graph(scene).facts()


def test_the_same_picture_has_the_same_slots_from_either_side():
    scene = Scene((Thing("tree", "red"), Thing("cat", "blue", "sitting")), "snow", "left")
    assert slots(scene).tolist() == slots(scene.reversed()).tolist()
    assert scene.reversed().relation == "right"
    assert mirrored(scene).relation == "right"
    assert graph(scene).facts() == graph(scene.reversed()).facts()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("two kittens sleeping indoors", ("count", "cat", "2")),
        ("一只漆黑的小猫在草地上跳", ("colour", "cat", "black")),
        ("the red car is to the left of a sleeping dog", ("relation", "dog", "right", "car")),
        ("房子的左边有一棵绿树", ("relation", "house", "right", "tree")),
        ("A Horse RUNS on the beach.", ("action", "horse", "running")),
        ("在沙滩上奔跑的三匹白马", ("action", "horse", "running")),
    ],
)
def test_wordings_that_only_people_use_are_understood(text, fact):
    assert fact in parse(text).facts()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a black zebra on the moon", ("zebra", "moon")),
        ("一只恐龙在草地上跳跃", ("恐龙",)),
        ("a black cat jumping on the grass", ()),
        ("", ()),
    ],
)
def test_words_outside_the_drawn_world_are_named(text, unknown):
    assert parse(text).unknown == unknown
