"""What can happen in the drawn world: scenes, how they are drawn at random, and how they are put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuwen.jobs import Language, Style
from workers.scenes.lexicon import CONCEPT, KEYS, PLACES_EN, PLACES_ZH

Split = Literal["train", "validation", "seen", "unseen"]
SPLITS: tuple[Split, ...] = ("train", "validation", "seen", "unseen")

ANIMALS = frozenset({"cat", "dog", "rabbit", "bird", "horse", "fish"})

UNSEEN_COLOURS = frozenset(
    {
        ("cat", "green"),
        ("dog", "blue"),
        ("rabbit", "red"),
        ("bird", "purple"),
        ("horse", "orange"),
        ("fish", "black"),
        ("car", "white"),
        ("boat", "yellow"),
        ("house", "green"),
        ("tree", "blue"),
    }
)
"""(object, colour) pairs that no training scene contains."""

UNSEEN_ACTIONS = frozenset(
    {
        ("dog", "jumping"),
        ("rabbit", "sleeping"),
        ("horse", "sitting"),
        ("cat", "swimming"),
    }
)
"""(object, action) pairs that no training scene contains."""

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True, slots=True)
class Thing:
    """`count` equal objects. An animal without an action stands still."""

    object: str
    colour: str
    action: str | None = None
    size: str = "large"
    count: int = 1

    @property
    def unseen(self) -> bool:
        """Whether it has a colour or an action that no training scene shows it with."""
        return (self.object, self.colour) in UNSEEN_COLOURS or (
            self.object,
            self.action,
        ) in UNSEEN_ACTIONS


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing, or two different single ones with a relation (of the first to the second), at a place.

    `seed` decides everything that words do not say: position, pose, light, background.
    """

    things: tuple[Thing, ...]
    place: str
    relation: str | None = None
    seed: int = 0

    @property
    def unseen(self) -> bool:
        """Whether any of its things has such a colour or action."""
        return any(thing.unseen for thing in self.things)

    def reversed(self) -> Scene:
        """The same picture told from the other thing."""
        relation = OPPOSITE[self.relation] if self.relation else None
        return replace(self, things=self.things[::-1], relation=relation)

    def canonical(self) -> Scene:
        """The things in the order of `KEYS["object"]`, so that equal pictures have equal descriptions."""
        order = [KEYS["object"].index(thing.object) for thing in self.things]
        return self if order == sorted(order) else self.reversed()


def possible_actions(object_: str, place: str) -> tuple[str | None, ...]:
    """Actions that make sense for an object at a place; None is standing still (or being a thing)."""
    if object_ not in ANIMALS:
        return (None,)
    if object_ == "fish":
        return ("swimming", "jumping") if place == "water" else (None, "jumping")
    if object_ == "bird":
        return (None, "flying", "swimming") if place == "water" else (None, "sitting", "sleeping", "flying")
    if place == "water":
        return (None, "running", "jumping", "swimming")
    return (None, "sitting", "running", "jumping", "sleeping")


def mirrored(scene: Scene) -> Scene:
    """What the mirror image of the scene's picture shows."""
    if scene.relation in ("left", "right"):
        return replace(scene, relation=OPPOSITE[scene.relation])
    return scene


T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Pick one of the options at random, each with the same probability."""
    return options[int(rng.integers(len(options)))]


def sample_scene(rng: np.random.Generator, split: Split) -> Scene:
    """Draw a scene. `unseen` scenes hold at least one unseen pair, the others none.

    The seed's remainder modulo the number of splits is the split's index: no picture is in two splits.
    """
    while True:
        scene = _draw(rng, split)
        if scene.unseen == (split == "unseen"):
            return scene


def _draw(rng: np.random.Generator, split: Split) -> Scene:
    place = pick(rng, KEYS["place"])
    seed = int(rng.integers(2**48)) * len(SPLITS) + SPLITS.index(split)
    if rng.random() < 0.5:
        count = 1 if rng.random() < 0.45 else pick(rng, (2, 3, 4))
        thing = _draw_thing(rng, pick(rng, KEYS["object"]), place, count)
        return Scene((thing,), place, None, seed)
    first, second = rng.permutation(len(KEYS["object"]))[:2]
    things = tuple(_draw_thing(rng, KEYS["object"][i], place, 1) for i in (first, second))
    return Scene(things, place, pick(rng, KEYS["relation"]), seed)


def _draw_thing(rng: np.random.Generator, object_: str, place: str, count: int) -> Thing:
    colour = pick(rng, KEYS["colour"])
    action = pick(rng, possible_actions(object_, place))
    size = pick(rng, KEYS["size"])
    return Thing(object_, colour, action, size, count)


def edit(scene: Scene, rng: np.random.Generator, split: Split = "train") -> Scene:
    """A scene that differs in exactly one respect: a hard negative for the same picture.

    Outside `unseen`, unseen pairs stay out here too: a model that met them only as negatives would refuse them.
    """
    while True:
        other = _edit_once(scene, rng)
        if other != scene and (split == "unseen" or not other.unseen):
            return other


def _edit_once(scene: Scene, rng: np.random.Generator) -> Scene:
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    kinds = ["object", "colour", "colour", "action", "place"]
    kinds += ["relation", "swap", "swap"] if scene.relation else ["count", "count"]
    kind = pick(rng, kinds)
    if kind == "place":
        return replace(scene, place=pick(rng, _possible_places(scene)))
    if kind == "relation":
        return replace(scene, relation=pick(rng, KEYS["relation"]))
    if kind == "swap":
        return _swap_colours(scene)
    if kind == "object":
        options = _possible_objects(scene, thing)
        edited = replace(thing, object=pick(rng, options)) if options else thing
    elif kind == "colour":
        edited = replace(thing, colour=pick(rng, KEYS["colour"]))
    elif kind == "count":
        edited = replace(thing, count=pick(rng, (1, 2, 3, 4)))
    else:
        edited = _edit_action(scene, thing, rng)
    things = list(scene.things)
    things[index] = edited
    return replace(scene, things=tuple(things))


def _possible_places(scene: Scene) -> list[str]:
    """Places where all that happens in the scene makes sense."""

    def suits(place: str) -> bool:
        return all(thing.action in possible_actions(thing.object, place) for thing in scene.things)

    return [place for place in KEYS["place"] if suits(place)]


def _possible_objects(scene: Scene, thing: Thing) -> list[str]:
    """Objects that are not in the scene and can do what the thing does."""
    taken = {other.object for other in scene.things}
    free = [object_ for object_ in KEYS["object"] if object_ not in taken]
    return [object_ for object_ in free if thing.action in possible_actions(object_, scene.place)]


def _edit_action(scene: Scene, thing: Thing, rng: np.random.Generator) -> Thing:
    """The thing in another action; what stands still goes on standing, because no caption says that it stands."""
    actions = [action for action in possible_actions(thing.object, scene.place) if action is not None]
    if thing.action is None or not actions:
        return thing
    return replace(thing, action=pick(rng, actions))


def _swap_colours(scene: Scene) -> Scene:
    first, second = scene.things
    swapped = (
        replace(first, colour=second.colour),
        replace(second, colour=first.colour),
    )
    return replace(scene, things=swapped)


SLOTS = (
    *(f"{role}_{i}" for i in (1, 2) for role in ("object", "colour", "action", "size", "count")),
    "place",
    "relation",
)
SLOT_SIZES = tuple(len(KEYS[name.rstrip("_12")]) + 1 for name in SLOTS)  # type: ignore[index]  # every slot is one of these keys


def slots(scene: Scene) -> NDArray[np.int64]:
    """The canonical scene as integers, shape (len(SLOTS),): 0 is none, k is the k-th value of the role."""
    scene = scene.canonical()
    values = [0] * len(SLOTS)
    for i, thing in enumerate(scene.things):
        values[5 * i] = KEYS["object"].index(thing.object) + 1
        values[5 * i + 1] = KEYS["colour"].index(thing.colour) + 1
        values[5 * i + 2] = KEYS["action"].index(thing.action) + 1 if thing.action else 0
        values[5 * i + 3] = KEYS["size"].index(thing.size) + 1
        values[5 * i + 4] = thing.count
    values[10] = KEYS["place"].index(scene.place) + 1
    values[11] = KEYS["relation"].index(scene.relation) + 1 if scene.relation else 0
    return np.array(values, dtype=np.int64)


# ── captions ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Mention:
    """What a caption says of a thing; None is left unsaid."""

    object: str
    count: int = 1
    colour: str | None = None
    size: str | None = None
    action: str | None = None


def caption(
    scene: Scene,
    language: Language,
    style: Style,
    rng: np.random.Generator | None = None,
    *,
    omit: float = 0.0,
) -> str:
    """Say what is in the scene.

    Object, colour, count, action, place and relation are always said; size in `detailed` and `tags`.
    Without `rng` the plainest wording is taken. With `omit`, each of colour, action, place, relation is left out
    with that probability, as people's prompts do.
    """
    rng = rng if rng is not None else _FIRST

    def said(value: T | None) -> T | None:
        return value if omit == 0 or rng.random() >= omit else None

    if len(scene.things) == 2 and rng.random() >= 0.5:
        scene = scene.reversed()
    mentions = []
    for thing in scene.things:
        colour = said(thing.colour)
        size = None if style == "short" else said(thing.size)
        action = said(thing.action)
        mentions.append(Mention(thing.object, thing.count, colour, size, action))
    return say(mentions, said(scene.place), said(scene.relation), language, style, rng)


def say(
    mentions: Sequence[Mention],
    place: str | None,
    relation: str | None,
    language: Language,
    style: Style,
    rng: np.random.Generator | None = None,
) -> str:
    """Put one or two mentions into words, with a place and the relation of the first to the second, where given."""
    rng = rng if rng is not None else _FIRST
    write = _ZH if language == "zh" else _EN
    if style == "tags":
        return write.tags(mentions, place, relation, rng)
    alone = len(mentions) == 1
    text = write.one(mentions[0], place, rng) if alone else write.two(mentions, place, relation, rng)
    if style == "short":
        return text
    if language == "zh":
        return f"{pick(rng, _ZH_OPENINGS)}{text}。"
    return f"{pick(rng, _EN_OPENINGS)}{text}."


class _Plain(np.random.Generator):
    """The generator that always chooses the first option."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]  # always one number
        return 0.0

    def integers(self, *_: object, **__: object) -> int:  # type: ignore[override]  # always one number
        return 0


_FIRST = _Plain()
_ZH_OPENINGS = ("画面中，", "图中，")
_EN_OPENINGS = ("in this picture, ", "here, ")


class _Chinese:
    def noun(self, m: Mention, rng: np.random.Generator, *, action: bool) -> str:
        """A thing with what is said of it, as a noun phrase."""
        concept = CONCEPT[m.object]
        head = pick(rng, CONCEPT[str(m.count)].zh[:1]) + pick(rng, concept.measure)
        doing = f"正在{pick(rng, CONCEPT[m.action].zh)}的" if action and m.action else ""
        size = pick(rng, CONCEPT[m.size].zh) if m.size else ""
        if m.colour is None:
            return head + doing + size + pick(rng, concept.zh)
        form = rng.random()
        if form < 0.6:
            return f"{head}{doing}{size}{pick(rng, CONCEPT[m.colour].zh)}的{pick(rng, concept.zh)}"
        if form < 0.8:
            return f"{head}{doing}{size}{pick(rng, CONCEPT[m.colour].zh)}{pick(rng, concept.zh)}"
        return f"{head}{doing}{size}{CONCEPT[m.colour].zh_short}{concept.zh_short}"

    def one(self, m: Mention, place: str | None, rng: np.random.Generator) -> str:
        """A sentence about one mention."""
        where = pick(rng, PLACES_ZH[place]) if place else None
        noun = self.noun(m, rng, action=False)
        verb = pick(rng, CONCEPT[m.action].zh) if m.action else None
        if where and verb:
            forms = (
                f"{noun}在{where}{verb}",
                f"{noun}正在{where}{verb}",
                f"{where}有{noun}在{verb}",
            )
            return pick(rng, (forms[0], *forms, f"{where}，{noun}正在{verb}"))
        if where:
            return pick(rng, (f"{noun}在{where}", f"{where}有{noun}"))
        if verb:
            return pick(
                rng,
                (
                    f"{noun}在{verb}",
                    f"{noun}正在{verb}",
                    self.noun(m, rng, action=True),
                ),
            )
        return noun

    def two(
        self,
        ms: Sequence[Mention],
        place: str | None,
        relation: str | None,
        rng: np.random.Generator,
    ) -> str:
        """A sentence about two mentions."""
        a, b = (self.noun(m, rng, action=True) for m in ms)
        where = pick(rng, PLACES_ZH[place]) if place else None
        if relation is None:
            text = f"{a}和{b}"
            if where is None:
                return text
            return pick(rng, (f"{text}在{where}", f"{where}有{text}"))
        side = pick(rng, CONCEPT[relation].zh)
        text = pick(rng, (f"{a}在{b}的{side}", f"{a}在{b}{side}", f"{b}的{side}有{a}"))
        return f"{where}，{text}" if where else text

    def tags(
        self,
        ms: Sequence[Mention],
        place: str | None,
        relation: str | None,
        rng: np.random.Generator,
    ) -> str:
        """Keywords with commas between them."""
        parts: list[str] = []
        for m in ms:
            head = CONCEPT[str(m.count)].zh[0] + CONCEPT[m.object].measure[0] if m.count > 1 else ""
            colour = CONCEPT[m.colour].zh[0] if m.colour else ""
            parts.append(head + colour + CONCEPT[m.object].zh[0])
            parts += [CONCEPT[m.size].zh_short] if m.size else []
            parts += [pick(rng, CONCEPT[m.action].zh)] if m.action else []
        if relation:
            parts.append(f"{CONCEPT[ms[0].object].zh[0]}在{CONCEPT[ms[1].object].zh[0]}{CONCEPT[relation].zh[0]}")
        if place:
            parts.append(CONCEPT[place].zh[0])
        return "，".join(parts)


class _English:
    def noun(self, m: Mention, rng: np.random.Generator, *, action: bool) -> str:
        """A thing with what is said of it, as a noun phrase."""
        concept = CONCEPT[m.object]
        name = pick(rng, concept.plural if m.count > 1 else concept.en)
        words = [pick(rng, CONCEPT[word].en) for word in (m.size, m.colour) if word]
        doing = pick(rng, CONCEPT[m.action].en) if action and m.action else None
        if doing and rng.random() >= 0.6:
            words.insert(0, doing)
            doing = None
        words.append(name)
        head = CONCEPT[str(m.count)].en[0] if m.count > 1 else "an" if words[0][0] in "aeiou" else "a"
        return " ".join([head, *words, *([doing] if doing else [])])

    def one(self, m: Mention, place: str | None, rng: np.random.Generator) -> str:
        """A sentence about one mention."""
        where = pick(rng, PLACES_EN[place]) if place else None
        noun = self.noun(m, rng, action=False)
        verb = pick(rng, CONCEPT[m.action].en) if m.action else None
        be = "are" if m.count > 1 else "is"
        if where and verb:
            forms = (
                f"{noun} {verb} {where}",
                f"{noun} {be} {verb} {where}",
                f"{where}, {noun} {be} {verb}",
            )
            return pick(rng, (forms[0], *forms, f"there {be} {noun} {verb} {where}"))
        if where:
            return pick(rng, (f"{noun} {where}", f"there {be} {noun} {where}"))
        if verb:
            return pick(
                rng,
                (
                    f"{noun} {verb}",
                    f"{noun} {be} {verb}",
                    self.noun(m, rng, action=True),
                ),
            )
        return noun

    def two(
        self,
        ms: Sequence[Mention],
        place: str | None,
        relation: str | None,
        rng: np.random.Generator,
    ) -> str:
        """A sentence about two mentions."""
        a, b = (self.noun(m, rng, action=True) for m in ms)
        where = pick(rng, PLACES_EN[place]) if place else None
        if relation is None:
            text = f"{a} and {b}"
            return text if where is None else pick(rng, (f"{text} {where}", f"{where}, {text}"))
        side = pick(rng, CONCEPT[relation].en)
        text = pick(rng, (f"{a} {side} {b}", f"{a} is {side} {b}"))
        return text if where is None else pick(rng, (f"{text} {where}", f"{where}, {text}"))

    def tags(
        self,
        ms: Sequence[Mention],
        place: str | None,
        relation: str | None,
        rng: np.random.Generator,
    ) -> str:
        """Keywords with commas between them."""
        parts: list[str] = []
        for m in ms:
            concept = CONCEPT[m.object]
            head = [CONCEPT[str(m.count)].en[0]] if m.count > 1 else []
            colour = [m.colour] if m.colour else []
            parts.append(" ".join([*head, *colour, (concept.plural if m.count > 1 else concept.en)[0]]))
            parts += [CONCEPT[m.size].en[0]] if m.size else []
            parts += [pick(rng, CONCEPT[m.action].en)] if m.action else []
        if relation:
            parts.append(f"{ms[0].object} {CONCEPT[relation].en[-1]} {ms[1].object}")
        if place:
            parts.append(place)
        return ", ".join(parts)


_ZH, _EN = _Chinese(), _English()
