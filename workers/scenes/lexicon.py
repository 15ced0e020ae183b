"""The words of the drawn world: every concept with its Chinese and English names, and the words around them.

The first name of a concept is the one that results show; the others are synonyms that captions use too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["object", "colour", "action", "size", "count", "place", "relation"]


@dataclass(frozen=True, slots=True)
class Concept:
    """One value of a role. `zh` and `en` are names; `zh_short` is the form that leans on a noun (黑猫)."""

    key: str
    zh: tuple[str, ...]
    en: tuple[str, ...]
    zh_short: str = ""
    measure: tuple[str, ...] = ()
    """Chinese measure words, for objects."""
    plural: tuple[str, ...] = ()
    """English plurals in the order of `en`, for objects; English finite verbs, for actions."""


OBJECTS = (
    Concept("cat", ("猫", "猫咪"), ("cat", "kitty"), "猫", ("只",), ("cats", "kitties")),
    Concept("dog", ("狗", "狗狗"), ("dog", "hound"), "狗", ("只", "条"), ("dogs", "hounds")),
    Concept("rabbit", ("兔子", "兔"), ("rabbit", "bunny"), "兔", ("只",), ("rabbits", "bunnies")),
    Concept("bird", ("鸟", "鸟儿"), ("bird",), "鸟", ("只",), ("birds",)),
    Concept("horse", ("马", "骏马"), ("horse", "pony"), "马", ("匹",), ("horses", "ponies")),
    Concept("fish", ("鱼", "鱼儿"), ("fish",), "鱼", ("条",), ("fish",)),
    Concept("car", ("汽车", "轿车"), ("car", "automobile"), "车", ("辆",), ("cars", "automobiles")),
    Concept("boat", ("船", "帆船"), ("boat", "sailboat"), "船", ("艘", "条"), ("boats", "sailboats")),
    Concept("house", ("房子", "房屋"), ("house", "cottage"), "房子", ("座", "栋"), ("houses", "cottages")),
    Concept("tree", ("树", "树木"), ("tree",), "树", ("棵",), ("trees",)),
)
COLOURS = (
    Concept("red", ("红色",), ("red", "scarlet"), "红"),
    Concept("orange", ("橙色", "橘色"), ("orange",), "橙"),
    Concept("yellow", ("黄色",), ("yellow",), "黄"),
    Concept("green", ("绿色",), ("green",), "绿"),
    Concept("blue", ("蓝色",), ("blue",), "蓝"),
    Concept("purple", ("紫色",), ("purple", "violet"), "紫"),
    Concept("white", ("白色",), ("white",), "白"),
    Concept("black", ("黑色",), ("black",), "黑"),
)
ACTIONS = (
    Concept("sitting", ("坐着", "蹲坐"), ("sitting", "seated"), "坐", plural=("sits", "sit")),
    Concept("running", ("奔跑", "跑步"), ("running", "dashing"), "跑", plural=("runs", "run")),
    Concept("jumping", ("跳跃", "蹦跳"), ("jumping", "leaping"), "跳", plural=("jumps", "jump")),
    Concept("sleeping", ("睡觉", "沉睡"), ("sleeping", "napping"), "睡", plural=("sleeps", "sleep")),
    Concept("flying", ("飞翔", "飞行"), ("flying",), "飞", plural=("flies", "fly")),
    Concept("swimming", ("游泳", "游动"), ("swimming",), "游", plural=("swims", "swim")),
)
SIZES = (
    Concept("small", ("很小的", "小小的"), ("small", "little", "tiny"), "小"),
    Concept("large", ("很大的", "大大的"), ("large", "big", "huge"), "大"),
)
COUNTS = (
    Concept("1", ("一",), ("one",)),
    Concept("2", ("两", "二"), ("two",)),
    Concept("3", ("三",), ("three",)),
    Concept("4", ("四",), ("four",)),
)
PLACES = (
    Concept("grass", ("草地", "草坪"), ("grass", "lawn")),
    Concept("sand", ("沙滩", "沙地"), ("sand", "beach")),
    Concept("snow", ("雪地", "雪原"), ("snow",)),
    Concept("water", ("水", "湖水"), ("water", "lake")),
    Concept("room", ("房间", "屋子"), ("room",)),
    Concept("night street", ("夜晚的街道", "夜晚的街头"), ("night street",)),
)
RELATIONS = (
    Concept("left", ("左边", "左侧"), ("to the left of", "left of")),
    Concept("right", ("右边", "右侧"), ("to the right of", "right of")),
    Concept("above", ("上方", "上面"), ("above", "over")),
    Concept("below", ("下方", "下面"), ("below", "under")),
)

BY_ROLE: dict[Role, tuple[Concept, ...]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "action": ACTIONS,
    "size": SIZES,
    "count": COUNTS,
    "place": PLACES,
    "relation": RELATIONS,
}
KEYS: dict[Role, tuple[str, ...]] = {role: tuple(c.key for c in concepts) for role, concepts in BY_ROLE.items()}
CONCEPT: dict[str, Concept] = {c.key: c for concepts in BY_ROLE.values() for c in concepts}

PLACES_ZH = {
    "grass": ("草地上", "草坪上"),
    "sand": ("沙滩上", "沙地上"),
    "snow": ("雪地上", "雪原上"),
    "water": ("水中", "水里", "水面上"),
    "room": ("房间里", "屋子里"),
    "night street": ("夜晚的街道上", "夜晚的街头"),
}
"""Names of places as Chinese says them after 在."""

PLACES_EN = {
    "grass": ("on the grass", "on the lawn", "on grass"),
    "sand": ("on the sand", "on the beach", "on a sandy beach"),
    "snow": ("on the snow", "in the snow"),
    "water": ("in the water", "on the water", "in a lake"),
    "room": ("in a room", "in the room", "indoors"),
    "night street": ("on a street at night", "on the street at night", "on a night street"),
}

EXTRA_FORMS: dict[Role, dict[str, tuple[str, ...]]] = {
    "object": {
        "cat": ("kitten", "kittens"),
        "dog": ("puppy", "puppies", "犬"),
        "car": ("小汽车", "车子"),
        "boat": ("ship", "ships"),
        "tree": ("大树",),
    },
    "colour": {"orange": ("橘黄色", "橙黄色"), "white": ("雪白",), "black": ("漆黑",)},
    "action": {
        "sitting": ("坐下", "蹲着", "坐"),
        "running": ("跑",),
        "jumping": ("跳起", "跳"),
        "sleeping": ("睡着", "睡", "asleep"),
        "flying": ("飞",),
        "swimming": ("游水", "游"),
    },
    "size": {"small": ("小", "小型"), "large": ("大", "巨大", "大型")},
    "count": {
        "1": ("a", "an", "1", "个"),
        "2": ("2", "俩", "pair"),
        "3": ("3",),
        "4": ("4",),
    },
    "place": {
        "grass": ("草原", "草丛", "meadow"),
        "sand": ("海滩", "沙漠", "sandy beach", "desert"),
        "snow": ("雪",),
        "water": ("水面", "湖面", "海面", "湖", "海", "sea"),
        "room": ("室内", "屋里", "indoors"),
        "night street": ("夜街", "街道", "街上", "夜晚", "street at night", "street", "night"),
    },
    "relation": {
        "left": ("on the left of", "左面", "左"),
        "right": ("on the right of", "右面", "右"),
        "above": ("on top of",),
        "below": ("underneath", "beneath"),
    },
}
"""Forms that are understood but never written."""

FILLERS = frozenset(
    (
        *(
            "the",
            "is",
            "are",
            "was",
            "there",
            "here",
            "of",
            "in",
            "on",
            "at",
            "to",
            "and",
            "with",
            "that",
            "which",
            "it",
        ),
        *("its", "while", "picture", "image", "photo", "drawing", "shows", "showing", "scene", "has", "this", "by"),
        *(
            "的",
            "在",
            "正在",
            "正",
            "着",
            "是",
            "有",
            "和",
            "与",
            "以及",
            "上",
            "里",
            "中",
            "只",
            "条",
            "匹",
            "辆",
            "艘",
        ),
        *("座", "栋", "棵", "头", "张", "幅", "画面", "图", "图片", "照片", "画", "这", "它", "了", "一张", "一幅"),
    )
)
"""Words that carry no meaning of their own."""
