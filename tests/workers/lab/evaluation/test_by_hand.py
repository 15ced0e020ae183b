"""Prompts written by hand: the data, and the rules by which pictures of them are judged."""

from __future__ import annotations

import numpy as np
import pytest

from workers.engines.builtin import BuiltinGenerator
from workers.lab.evaluation import by_hand
from workers.lab.evaluation.by_hand import SEEDS, SETS, Asked, Drawn, prompts_by_hand, shows, summary
from workers.lab.evaluation.goals import goals
from workers.lab.evaluation.judge import Judge
from workers.lab.evaluation.sighting import Detection, Sighting, truth
from workers.lab.evaluation.tables import tables
from workers.scenes.grammar import Mention, Scene, Thing
from workers.scenes.lexicon import CONCEPT, KEYS

PIXELS = np.zeros((64, 64, 3), np.uint8)
CAT = Asked("a black cat on the grass", True, (Mention("cat", 1, "black"),), "grass")
TWO = Asked("two cats", True, (Mention("cat", 2),))
PAIR = Asked("a cat left of a dog", True, (Mention("cat"), Mention("dog")), None, "left")


def sighting(*things: Thing, place: str = "grass", relation: str | None = None) -> Sighting:
    return truth(Scene(things, place, relation))


@pytest.mark.parametrize("name", SETS)
def test_there_are_enough_prompts_in_both_languages_feasible_and_not(name: str) -> None:
    asked = prompts_by_hand(name)
    assert len({each.prompt for each in asked}) == len(asked) >= 60
    chinese = [any("\u4e00" <= letter <= "\u9fff" for letter in each.prompt) for each in asked]
    assert 0.25 < np.mean(chinese) < 0.75
    assert 20 <= sum(not each.feasible for each in asked) < len(asked) / 2
    for each in asked:
        assert {thing.object for thing in each.things} <= set(KEYS["object"])
        assert all(v is None or v in CONCEPT for t in each.things for v in (t.colour, t.action, t.size))
        assert each.place in (None, *KEYS["place"])
        assert each.relation in (None, *KEYS["relation"])
        # An infeasible prompt holds no picture against itself, a feasible one always does.
        assert each.things or each.place or not each.feasible


def test_no_prompt_is_in_both_sets() -> None:
    development, held_out = ({each.prompt.casefold() for each in prompts_by_hand(name)} for name in SETS)
    assert not development & held_out


def test_true_scenes_show_what_is_asked_for() -> None:
    for name in SETS:
        for asked in prompts_by_hand(name):
            for scene in asked.scenes if asked.feasible else []:
                assert shows(asked, truth(scene)), asked.prompt


@pytest.mark.parametrize(
    ("asked", "seen", "right"),
    [
        (CAT, sighting(Thing("cat", "black")), True),
        (CAT, sighting(Thing("cat", "white")), False),
        (CAT, sighting(Thing("dog", "black")), False),
        (CAT, sighting(Thing("cat", "black"), place="snow"), False),
        (CAT, sighting(Thing("cat", "black", count=2)), False),
        (CAT, sighting(Thing("cat", "black"), Thing("dog", "red"), relation="left"), False),
        (TWO, sighting(Thing("cat", "black", count=2)), True),
        (TWO, sighting(Thing("cat", "black", count=3)), False),
        (TWO, sighting(Thing("cat", "black")), False),
        (PAIR, sighting(Thing("cat", "black"), Thing("dog", "red"), relation="left"), True),
        (PAIR, sighting(Thing("dog", "black"), Thing("cat", "red"), relation="left"), False),
        (Asked("snow", True, (), "snow"), Sighting((), sighting(Thing("cat", "red"), place="snow").places), True),
        (Asked("snow", True, (), "snow"), sighting(Thing("cat", "red"), place="snow"), False),
    ],
)
def test_all_that_is_asked_for_and_nothing_else(asked: Asked, seen: Sighting, right: bool) -> None:
    assert shows(asked, seen) == right


def test_a_head_is_a_part_and_no_second_cat() -> None:
    seen = sighting(Thing("cat", "black"))
    (cat,) = seen.detections
    x, y = cat.centre
    head = Detection((x - 0.1, y - 0.1, x + 0.1, y + 0.1), 0.5, cat.chances)
    elsewhere = Detection((x + 0.5, y, x + 0.7, y + 0.2), 0.5, cat.chances)
    assert shows(CAT, Sighting((cat, head), seen.places))
    assert not shows(CAT, Sighting((cat, elsewhere), seen.places))


@pytest.mark.parametrize(
    ("feasible", "right", "said", "outcome"),
    [
        (True, (True,) * 8, (), "honoured"),
        (True, (True,) * 8, ("“blakc” was read as “black”",), "honoured"),
        (True, (True,) * 7 + (False,), (), "silently wrong"),
        (True, (True,) * 7 + (False,), ("hat",), "said"),
        (True, (), ("refused",), "said"),
        (False, (True,) * 8, (), "silently wrong"),
        (False, (True,) * 8, ("elephant",), "said"),
    ],
)
def test_outcomes(feasible: bool, right: tuple[bool, ...], said: tuple[str, ...], outcome: str) -> None:
    drawn = Drawn(Asked("a cat", feasible, (Mention("cat"),)), (PIXELS,) * len(right), right, said)
    assert drawn.outcome == outcome


def test_figures_count_refused_pictures_as_wrong() -> None:
    honoured = Drawn(CAT, (PIXELS,) * len(SEEDS), (True,) * len(SEEDS), ())
    refused = Drawn(CAT, (), (), ("refused",))
    impossible = Drawn(Asked("an elephant", False, ()), (), (), ("refused",))
    found = summary([honoured, refused, impossible])
    assert found["infeasible"]["said"]["value"] == 1
    assert found["feasible"]["honoured"]["value"] == found["feasible"]["said"]["value"] == 0.5
    assert found["pictures"]["value"] == 0.5
    assert found["pictures"]["count"] == 2 * len(SEEDS)


@pytest.mark.usefixtures("one_torch_thread")
def test_the_section_has_figures_a_table_and_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {
        "development": (CAT, Asked("a dog", True, (Mention("cat"),)), Asked("an elephant", False, ())),
        "held_out": (CAT, Asked("a cat and an elephant", False, (Mention("cat"),))),
    }
    monkeypatch.setattr(by_hand, "prompts_by_hand", sets.__getitem__)
    found = by_hand.figures(BuiltinGenerator("cpu"), Judge.load())
    assert found["development"]["feasible"]["honoured"]["value"] == 0.5
    assert found["development"]["wrong"] == ["a dog"]
    assert "wrong" not in found["held_out"]
    assert found["held_out"]["feasible"]["honoured"]["value"] == found["held_out"]["infeasible"]["said"]["value"] == 1
    assert found["held_out"]["ceiling"]["pictures"]["value"] == 1
    told = {goal.what: goal for goal in goals({"by_hand": found})}
    assert told["hand-written feasible prompts, held out: honoured in all of 8"].verdict == "aim"
    assert told["hand-written feasible prompts, held out: honoured or said"].measured == 1
    (_, table) = tables({"goals": [], "by_hand": found})
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["feasible, development"][0].startswith("0.500 ")
    assert rows["feasible, development"][2].endswith("of 2")
    assert rows["infeasible, held out"] == ["–", "1.000 (1.000–1.000) of 1", "0.000 (0.000–0.000) of 1"]
