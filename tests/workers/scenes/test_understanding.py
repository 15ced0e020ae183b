"""Prompts in people's words: what they ask for, and what is said of what cannot be drawn."""

from __future__ import annotations

import numpy as np
import pytest

from workers.scenes.grammar import SPLITS, Mention, caption, sample_scene
from workers.scenes.normalising import normalise
from workers.scenes.parsing import SceneGraph, parse
from workers.scenes.understanding import Understood, refusal, understand
from workers.scenes.wording import distance, neighbours, words

CAT, DOG, TREE = Mention("cat"), Mention("dog"), Mention("tree")
BLACK_CAT, WHITE_CAT = Mention("cat", colour="black"), Mention("cat", colour="white")
WHITE_DOG = Mention("dog", colour="white")
JUMPING = Mention("cat", colour="black", action="jumping")


def several(mention: Mention, count: int) -> Mention:
    return Mention(mention.object, count, mention.colour, mention.size, mention.action)


def facts(asked: Understood) -> frozenset[tuple[str, ...]]:
    return SceneGraph(asked.things, asked.place, asked.relation).facts()


@pytest.mark.parametrize(
    ("text", "things"),
    [
        # predicates after the noun
        ("the cat is black and jumps", [JUMPING]),
        ("a cat that is black and is jumping", [JUMPING]),
        ("A cat. It is black. It jumps.", [JUMPING]),
        ("猫是黑色的，在跳", [JUMPING]),
        ("这只猫是黑色的，它在跳", [JUMPING]),
        ("猫和狗都是白色的", [WHITE_CAT, WHITE_DOG]),
        ("a cat and a dog, both white", [WHITE_CAT, WHITE_DOG]),
        ("the dog's colour is white", [WHITE_DOG]),
        ("a cat and a dog are running", [Mention("cat", action="running"), Mention("dog", action="running")]),
        ("一匹马在树的右边，马是黑色的", [Mention("horse", colour="black"), TREE]),
        ("the dog next to the cat is white", [WHITE_DOG, CAT]),
        ("a black cat next to a dog that is white", [BLACK_CAT, WHITE_DOG]),
        ("the cat is next to the dog and the dog is white", [CAT, WHITE_DOG]),
        ("the white dog is next to the tree and jumps", [Mention("dog", colour="white", action="jumping"), TREE]),
        # attributes before it
        ("一只在草地上跳跃的黑猫", [JUMPING]),
        ("a snow-white cat", [WHITE_CAT]),
        ("一只正在跳跃的黑色的猫", [JUMPING]),
        ("a small, black cat", [Mention("cat", colour="black", size="small")]),
        ("黑猫白狗", [BLACK_CAT, WHITE_DOG]),
        ("雪地里坐着一只白狗", [Mention("dog", colour="white", action="sitting")]),
        # numbers
        ("2 cats", [several(CAT, 2)]),
        ("3只黑猫", [several(BLACK_CAT, 3)]),
        ("猫两只", [several(CAT, 2)]),
        ("a pair of cats", [several(CAT, 2)]),
        ("four dogs", [several(DOG, 4)]),
        ("一对猫", [several(CAT, 2)]),
        ("cats", [several(CAT, 2)]),
        ("two cats and a dog", [several(CAT, 2), DOG]),
        ("I want 1 dog & 2 cats", [DOG, several(CAT, 2)]),
        ("a cat and another cat", [several(CAT, 2)]),
        # the same kind twice
        ("a black cat and a white cat", [BLACK_CAT, WHITE_CAT]),
        ("一只黑猫和一只白猫", [BLACK_CAT, WHITE_CAT]),
        ("two cats, one black and one white", [WHITE_CAT, BLACK_CAT]),
        (
            "two dogs, one sleeping and the other running",
            [Mention("dog", action="running"), Mention("dog", action="sleeping")],
        ),
        ("有三只猫，两只黑色，一只白色", [WHITE_CAT, several(BLACK_CAT, 2)]),
        # politeness
        ("please draw me a black cat", [BLACK_CAT]),
        ("Could you make a picture of a black cat, please?", [BLACK_CAT]),
        ("请画一张黑色的猫的图片", [BLACK_CAT]),
        ("麻烦帮我画一只黑猫，谢谢", [BLACK_CAT]),
        # as it is typed
        ("A BLACK CAT!!!", [BLACK_CAT]),
        ("Ａ　ｂｌａｃｋ　ｃａｔ", [BLACK_CAT]),
        ("一隻黑色的貓", [BLACK_CAT]),
        ("black cat", [BLACK_CAT]),
        # synonyms
        ("a jet-black kitty", [BLACK_CAT]),
        ("一只乌黑的喵星人", [BLACK_CAT]),
        ("a hare", [Mention("rabbit")]),
    ],
)
def test_things_are_understood_without_a_word_of_doubt(text: str, things: list[Mention]) -> None:
    asked = understand(text)
    assert list(asked.things) == things
    assert asked.warnings == asked.unknown == ()
    assert not asked.empty


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a cat on the beach", "sand"),
        ("海边有一只猫", "sand"),
        ("a bird flying over the lake", "water"),
        ("a cat at night", "night street"),
        ("a beautiful beach", "sand"),
        ("街上有一辆车", "night street"),
        ("A CAT, SNOW", "snow"),
    ],
)
def test_places_are_understood(text: str, place: str) -> None:
    assert understand(text).place == place


@pytest.mark.parametrize(
    "text",
    [
        "a cat to the left of a dog",
        "to the left of the dog is a cat",
        "There is a dog. To the left of it, there is a cat.",
        "a cat on the left and a dog on the right",
        "on the left a cat, on the right a dog",
        "a dog with a cat on its left",
        "a cat and a dog, the cat is left of the dog",
        "a dog to the right of a cat",
        "狗的左边有一只猫",
        "在狗的左边有一只猫",
        "一只猫在一只狗的左边",
        "左边是一只猫，右边是一只狗",
        "猫在左边，狗在右边",
        "狗在猫右边",
        "一只猫坐在狗的左边",
    ],
)
def test_the_cat_is_left_of_the_dog(text: str) -> None:
    asked = understand(text)
    assert ("relation", "cat", "left", "dog") in facts(asked)
    assert asked.warnings == ()


@pytest.mark.parametrize(
    "text", ["a cat under a tree", "under the tree sits a cat", "树下有一只猫", "猫在树下", "a tree above a cat"]
)
def test_the_cat_is_below_the_tree(text: str) -> None:
    assert ("relation", "cat", "below", "tree") in facts(understand(text))


@pytest.mark.parametrize("text", ["a bird on a house", "a bird that is above a house", "房子上有一只鸟", "鸟在房子上"])
def test_what_is_on_something_is_above_it(text: str) -> None:
    assert ("relation", "bird", "above", "house") in facts(understand(text))


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("a blakc cat", "“blakc” was read as “black”"),
        ("five black cats", "at most 4 things: 4 × cat of 5"),
        ("十只黑猫", "at most 4 things: 4 × cat of 10"),
        ("many black cats", "“many” is drawn as 4"),
        ("a black cat, a dog and a bird", "the bird is not drawn"),
        ("a black and white cat", "“white” is not drawn"),
        ("黑白相间的猫", "“白” is not drawn"),
        ("a black cat behind a tree", "“behind” cannot be drawn"),
        ("房子里有一只黑猫", "“里” cannot be drawn"),
        ("a flying black cat", "a cat cannot be drawn flying"),
        ("a dark black cat", "colours have no shades: “dark”"),
        ("一只深黑色的猫", "colours have no shades: “深”"),
        ("a black cat on the snow at night", "a picture has one place: “at night”"),
        ("a black cat on the left", "“on the left” is not drawn"),
        ("a black cat or a dog", "“or” leaves a choice: all of it is drawn"),
        ("a black tabby", "“tabby” is drawn as any cat"),
        ("a purple dragon and a black cat", "“purple” is said of something that is not known"),
    ],
)
def test_what_is_not_drawn_as_asked_is_told(text: str, warning: str) -> None:
    asked = understand(text)
    assert any(warning in told for told in asked.warnings), asked.warnings
    assert asked.things[0].object in ("cat", "house")
    assert Mention("cat").object in {thing.object for thing in asked.things}


@pytest.mark.parametrize(
    ("text", "unknown", "things"),
    [
        ("a cat and an elephant", ("elephant",), [CAT]),
        ("a pink cat", ("pink",), [CAT]),
        ("一只粉红色的猫", ("粉红色",), [CAT]),
        ("一只戴帽子的狗", ("戴帽子",), [DOG]),
        ("the quick brown fox jumps over the lazy dog", ("quick", "brown", "fox", "lazy"), [DOG]),
        ("a cat 🐱", ("🐱",), [CAT]),
        ("a black-furred cat", ("furred",), [BLACK_CAT]),
    ],
)
def test_words_outside_the_drawn_world_are_named(text: str, unknown: tuple[str, ...], things: list[Mention]) -> None:
    asked = understand(text)
    assert (asked.unknown, list(asked.things)) == (unknown, things)


@pytest.mark.parametrize(
    "text",
    [
        *("an elephant", "a zebra on the grass", "a mouse", "sheep", "a goat on the beach", "hello world", "", "!?"),
        *(
            "熊猫",
            "斑马在草地上",
            "火车",
            "猫头鹰",
            "一朵花",
            "海豚在海里",
            "水果",
            "雪人",
            "大象",
            "黑板",
            "骑自行车的人",
        ),
        *("black", "跳跃", "no cat", "not a cat", "没有狗", "a hot dog"),
    ],
)
def test_nothing_is_drawn_of_what_is_not_known(text: str) -> None:
    asked = understand(text)
    assert asked.empty
    assert "cats, dogs" in refusal(asked)
    assert all(word in refusal(asked) for word in asked.unknown)


@pytest.mark.parametrize(
    ("text", "objects", "unlike"),
    [
        ("a cat but no dog", ["cat"], ("object", "dog", "dog")),
        ("没有狗，只有一只猫", ["cat"], ("object", "dog", "dog")),
        ("不要画狗，画一只猫", ["cat"], ("object", "dog", "dog")),
        ("a cat without a dog or a bird", ["cat"], ("object", "bird", "bird")),
        ("a cat that isn't black", ["cat"], ("colour", "black", "cat")),
        ("猫不是黑色的", ["cat"], ("colour", "black", "cat")),
        ("画一只不是黑色的猫", ["cat"], ("colour", "black", "cat")),
        ("a dog that does not run", ["dog"], ("action", "running", "dog")),
        ("the cat is not on the grass", ["cat"], ("place", "grass", "")),
    ],
)
def test_what_is_denied_is_kept_out(text: str, objects: list[str], unlike: tuple[str, str, str]) -> None:
    asked = understand(text)
    assert [thing.object for thing in asked.things] == objects
    assert unlike in asked.unlike
    assert all(getattr(thing, unlike[0], None) != unlike[1] for thing in asked.things)


@pytest.mark.parametrize("text", ["一只在", "两只黑色的在", "两只狗和一只在"])
def test_a_prompt_may_end_in_the_middle_of_a_phrase(text: str) -> None:
    """A phrase that breaks off after 在 has no noun to look for."""
    assert understand(text).things == ((several(DOG, 2),) if "狗" in text else ())


def test_none_after_a_noun_is_a_denial() -> None:
    assert understand("一只狗，猫0只").things == (DOG,)
    assert understand("猫0只").unlike == {("object", "cat", "cat")}
    assert understand("dog0").things == (DOG,)
    assert understand("dog0").warnings == ("“0” after a noun was not read as its number",)


def test_an_unclear_misspelling_is_asked_about() -> None:
    asked = understand("a hourse")
    assert asked.empty
    assert set(asked.suggestions) == {"horse", "house"}
    assert "Did you mean “" in refusal(asked)


@pytest.mark.parametrize("word", ["sheep", "goat", "mouse", "back", "write", "beard", "glass", "coat", "card", "catch"])
def test_words_that_people_write_are_no_misspellings(word: str) -> None:
    assert neighbours(word) == ()


@pytest.mark.parametrize(
    ("one", "other", "far"),
    [("blakc", "black", 1), ("swiming", "swimming", 1), ("cat", "cat", 0), ("dog", "", 3), ("ab", "ba", 1)],
)
def test_distance(one: str, other: str, far: int) -> None:
    assert distance(one, other) == distance(other, one) == far


def test_normal_form() -> None:
    assert normalise("　Ａ　黑色的貓！\u200b  It’s") == "a 黑色的猫! it's"


def test_longest_words_win_and_single_characters_in_longer_words_do_not_count() -> None:
    assert [word.text for word in words("马上方")] == ["马", "上方"]
    assert [(word.text, word.part) for word in words("马上")] == [("马上", "unknown")]
    assert [(word.text, word.part) for word in words("仙鹤飞")] == [("仙鹤飞", "unknown")]


@pytest.mark.parametrize("split", SPLITS)
def test_captions_mean_what_they_were_written_to_mean(split: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        scene = sample_scene(rng, split)  # type: ignore[arg-type]
        for language in ("zh", "en"):
            for style in ("short", "detailed", "tags"):
                text = caption(scene, language, style, rng)  # type: ignore[arg-type]
                asked = understand(text)
                assert asked.unknown == (), text
                # "A cat and a dog running": both run, where the grammar's captions say it of the dog alone.
                assert parse(text).facts() <= facts(asked), text
                assert {fact for fact in facts(asked) - parse(text).facts() if fact[0] != "action"} == set(), text


def test_long_prompts_are_read_in_time() -> None:
    assert understand("colourful nebulous " * 200 + "a cat").unknown == ("colourful", "nebulous")
    assert understand("qwertyuiop" * 400).empty
    long = understand("一只猫" + "很" * 3900)
    assert not long.empty
    assert long.warnings == ("only the first 600 words and characters of the prompt were read",)
