"""Pictures of scenes."""

import dataclasses

import numpy as np
import pytest

from workers.lab.world.latents import LATENT_SIZE, latents
from workers.lab.world.paint import PALETTE
from workers.lab.world.render import paint, render
from workers.lab.world.sheet import contact_sheet
from workers.scenes.grammar import Scene, Thing, possible_actions, sample_scene
from workers.scenes.lexicon import KEYS

SCENE = Scene((Thing("cat", "black", "jumping"),), "grass", seed=5)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_a_picture_has_the_asked_size_and_is_the_same_each_time(size):
    picture = render(SCENE, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, render(SCENE, size))


def test_sizes_show_the_same_picture():
    large = render(SCENE, 128).reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(large - render(SCENE, 64)).mean() < 1


def test_latents_are_uniform_and_decide_with_the_words():
    vectors = np.stack([latents(dataclasses.replace(SCENE, seed=seed)) for seed in range(300)])
    assert vectors.shape == (300, LATENT_SIZE)
    assert -1 <= vectors.min() < -0.95
    assert 0.95 < vectors.max() <= 1
    other = dataclasses.replace(SCENE, seed=6)
    assert not np.array_equal(render(SCENE, 64), render(other, 64))
    assert np.array_equal(paint(SCENE, latents(other), 64), render(other, 64))


@pytest.mark.parametrize("object_", KEYS["object"])
def test_every_object_in_every_pose_at_every_place_shows_its_colour(object_):
    for place in KEYS["place"]:
        for action in possible_actions(object_, place):
            picture = render(Scene((Thing(object_, "purple", action),), place, seed=9), 64).astype(int)
            close = np.abs(picture - PALETTE["purple"]).max(-1) < 40
            assert close.mean() > 0.02, (place, action)


def test_each_role_changes_the_picture():
    scene = Scene((Thing("dog", "red", "running"), Thing("tree", "green")), "grass", "left", 3)
    dog, tree = scene.things
    changes = [
        dataclasses.replace(scene, things=(dataclasses.replace(dog, **change), tree))
        for change in ({"object": "cat"}, {"colour": "blue"}, {"action": "sitting"}, {"size": "small"})
    ]
    changes += [dataclasses.replace(scene, place="snow"), dataclasses.replace(scene, relation="above")]
    for change in changes:
        assert np.abs(render(change, 64).astype(int) - render(scene, 64)).max() > 60


def test_both_ways_of_telling_a_scene_are_one_picture():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_scene(rng, "train")
        if len(scene.things) == 2:
            assert np.array_equal(render(scene, 64), render(scene.reversed(), 64))


def test_left_is_left():
    scene = Scene((Thing("car", "red"), Thing("house", "blue")), "snow", "left", 8)
    picture = render(scene, 64).astype(int)
    columns = {name: np.nonzero(np.abs(picture - PALETTE[name]).max(-1) < 30)[1].mean() for name in ("red", "blue")}
    assert columns["red"] < 32 < columns["blue"]


def test_a_contact_sheet_holds_every_scene():
    assert contact_sheet([SCENE] * 5, 3, 32).size == (3 * 34, 2 * 34)
