"""Verdicts, prompts, intervals and scores of evaluation; the judge's own parts. No model's weights are needed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tuwen.jobs import RecognizedObject, RecognizeResult
from workers.lab.evaluation import recognition
from workers.lab.evaluation.captions import bleu_4, cider_d
from workers.lab.evaluation.description import f1, f1_rows, facts
from workers.lab.evaluation.intervals import figure, mean, mean_of_means, share
from workers.lab.evaluation.judge import GRID, ROLES, Judge, Maps, cells, sight
from workers.lab.evaluation.judge_pictures import Labelled, arrange
from workers.lab.evaluation.judge_training import Batch, JudgeRecipe, batches, figures, loss, nearness
from workers.lab.evaluation.judging import counterfactual, example
from workers.lab.evaluation.prompts import COLUMNS, GENEVAL, TAGS, Prompt, Wanted, prompts
from workers.lab.evaluation.sighting import VALUES, Sighting, seen_in, truth
from workers.lab.evaluation.verdicts import atoms, correct, relations
from workers.lab.world.latents import latents
from workers.lab.world.render import draw, layout, render
from workers.scenes.grammar import UNSEEN_ACTIONS, UNSEEN_COLOURS, Scene, Thing, sample_scene
from workers.scenes.parsing import parse

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RED_CAT_LEFT_OF_CAR = Scene((Thing("cat", "red", "sitting"), Thing("car", "blue")), "grass", "left", seed=8)
THREE_DOGS = Scene((Thing("dog", "black", count=3),), "snow", seed=4)


def asked(*include, tag="color_attr", **more):
    return Prompt(tag, "seen", "", "en", include, **more)


# ── prompts ──


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("tag", TAGS)
def test_prompts_say_what_they_ask_for(tag, column):
    drawn = prompts(tag, column, 100, seed=5)
    assert len({prompt.text for prompt in drawn}) == 100
    assert {prompt.language for prompt in drawn} == {"zh", "en"}
    assert drawn == prompts(tag, column, 100, seed=5)
    for prompt in drawn:
        said = parse(prompt.text)
        assert not said.unknown
        mentions = {mention.object: mention for mention in said.things}
        for wanted in prompt.include:
            mention = mentions[wanted.object]
            assert (mention.count, mention.colour, mention.action) == (wanted.count, wanted.colour, wanted.action)
        assert prompt.place in (None, said.place)
        pairs = {(w.object, w.colour) for w in prompt.include} | {(w.object, w.action) for w in prompt.include}
        assert bool(pairs & (UNSEEN_COLOURS | UNSEEN_ACTIONS)) == (column == "unseen")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("tag", TAGS)
def test_a_prompt_is_true_of_its_example_and_false_after_one_change(tag, column):
    rng = np.random.default_rng(0)
    for prompt in prompts(tag, column, 25, seed=6):
        assert correct(prompt, truth(example(prompt, 3)))
        assert not correct(prompt, truth(counterfactual(prompt, rng)))


def test_examples_are_pictures_that_no_model_was_trained_on():
    for column, residue in (("seen", 2), ("unseen", 3)):
        assert {example(p, 7).seed % 4 for p in prompts("colors", column, 10, seed=1)} == {residue}


def test_metadata_is_in_genevals_schema():
    (position,) = prompts("position", "seen", 1, seed=2)
    line = position.as_json()
    other, subject = line["include"]
    assert line["tag"] == "position"
    assert set(other) == {"class", "count"}
    assert subject["position"][0] in ("left of", "right of", "above", "below")
    assert subject["position"][1] == 0
    (counting,) = prompts("counting", "seen", 1, seed=2)
    line = counting.as_json()
    assert line["exclude"] == [{"class": line["include"][0]["class"], "count": line["include"][0]["count"] + 1}]


def test_prompts_of_atoms_have_three_to_eight():
    numbers = {len(atoms(prompt, truth(prompt.example))) for prompt in prompts("atoms", "seen", 60, seed=3)}
    assert numbers == set(range(3, 9))


# ── verdicts ──


def test_colours_are_bound_to_their_objects():
    seen = truth(RED_CAT_LEFT_OF_CAR)
    assert correct(asked(Wanted("cat", colour="red"), Wanted("car", colour="blue")), seen)
    assert not correct(asked(Wanted("cat", colour="blue"), Wanted("car", colour="red")), seen)
    assert correct(asked(Wanted("cat", action="sitting")), seen)
    assert not correct(asked(Wanted("cat", action="jumping")), seen)


def test_counts_are_neither_too_few_nor_too_many():
    seen = truth(THREE_DOGS)
    assert correct(asked(Wanted("dog", 3), exclude=(Wanted("dog", 4),)), seen)
    assert not correct(asked(Wanted("dog", 4), exclude=(Wanted("dog", 5),)), seen)
    assert not correct(asked(Wanted("dog", 2), exclude=(Wanted("dog", 3),)), seen)


def test_positions_are_told_from_the_second_entry():
    seen = truth(RED_CAT_LEFT_OF_CAR)
    assert correct(asked(Wanted("car"), Wanted("cat", position=("left of", 0))), seen)
    assert not correct(asked(Wanted("car"), Wanted("cat", position=("right of", 0))), seen)
    assert not correct(asked(Wanted("cat"), Wanted("car", position=("left of", 0))), seen)


def test_objects_on_one_another_stand_in_no_relation():
    assert relations((0.4, 0.4, 0.6, 0.6), (0.41, 0.41, 0.61, 0.61)) == set()
    assert relations((0.0, 0.4, 0.2, 0.6), (0.7, 0.4, 0.9, 0.6)) == {"left of"}
    assert relations((0.4, 0.7, 0.6, 0.9), (0.4, 0.1, 0.6, 0.3)) == {"below"}


def test_atoms_are_certain_of_the_truth_and_of_nothing_else():
    (prompt,) = (p for p in prompts("atoms", "seen", 1, seed=9))
    assert all(chance == pytest.approx(1) for chance in atoms(prompt, truth(prompt.example)).values())
    blank = Sighting((), np.full(6, 1 / 6, np.float32))
    assert max(chance for name, chance in atoms(prompt, blank).items() if name != "place") == 0


def test_the_chance_of_a_count_takes_doubts_into_account():
    seen = truth(THREE_DOGS)
    doubtful = Sighting((*seen.detections[:2], replace(seen.detections[2], presence=0.6)), seen.places)
    assert atoms(asked(Wanted("dog", 3)), doubtful)["count dog"] == pytest.approx(0.6)
    assert atoms(asked(Wanted("dog", 2)), doubtful)["count dog"] == pytest.approx(0.4)


# ── intervals ──


def test_an_interval_holds_the_true_share_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for i in range(60):
        found = mean(rng.random(80) < 0.7, seed=i)
        held += found.low <= 0.7 <= found.high
    assert 51 <= held <= 60


def test_groups_count_the_same_whatever_their_size():
    found = mean_of_means([[1.0] * 90, [0.0] * 10])
    assert found.value == 0.5
    assert found.low == found.high == 0.5
    assert found.count == 100


def test_pooled_figures_are_functions_of_sums():
    found = figure([(1, 2), (0, 2), (2, 2)], share)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


# ── captions ──


def test_f1_of_facts():
    scene = RED_CAT_LEFT_OF_CAR
    true = facts(scene, "short")
    (row,) = f1_rows([true], [parse("a red cat sitting to the left of a green car on the grass").facts()])
    assert row == (len(true) - 1, len(true), len(true))
    assert f1([row]).value == pytest.approx((len(true) - 1) / len(true))


def test_cider_and_bleu_like_what_references_say():
    references = [["a red cat on the grass"], ["two blue boats in the water"], ["三只狗在雪地上"]]
    same = [each[0] for each in references]
    assert cider_d(same, references) == pytest.approx(10)
    assert bleu_4(same[:2], references[:2], "en") == pytest.approx(1)
    worse = ["a blue cat on the grass", "a boat", "三只猫在雪地上"]
    assert 0 < cider_d(worse, references) < 8
    assert cider_d(same[1:] + same[:1], references) < 0.5


# ── recognition ──


def recognised(scene, **changes):
    objects = tuple(
        RecognizedObject(
            name=t.object,
            name_zh="",
            confidence=1,
            attributes={"colour": t.colour, "size": t.size},
            attributes_zh={},
            action=t.action,
            count=t.count,
        )
        for t in scene.canonical().things
    )
    values = {"objects": objects, "scene": scene.place, "relation": scene.canonical().relation, "confidence": 1.0}
    return RecognizeResult(**{**values, "scene_zh": "", "out_of_domain": False, **changes})


def test_what_is_recognised_rightly_has_a_macro_f1_of_one():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, "seen") for _ in range(40)]
    found = recognition.figures(scenes, [recognised(scene) for scene in scenes])
    assert found["macro_f1"]["value"] == 1
    assert found["exact"]["value"] == 1
    assert found["attributes"]["object"]["accuracy"] == 1


def test_a_missed_object_takes_its_attributes_with_it():
    scene = RED_CAT_LEFT_OF_CAR
    whole = recognised(scene)
    partial = recognised(scene, objects=whole.objects[1:], relation=None)
    answers = recognition.compare([scene], [partial])
    assert answers["object"].true == ["cat", "car"]
    assert answers["object"].found == [recognition.NOTHING, "car"]
    assert answers["colour"].found == [recognition.NOTHING, "blue"]
    assert answers["relation"].found == [recognition.NOTHING]
    assert answers["place"].found == ["grass"]


def test_an_invented_object_is_a_mistake_and_says_so():
    scene = Scene((Thing("tree", "green"),), "sand")
    answers = recognition.compare(
        [scene], [recognised(RED_CAT_LEFT_OF_CAR).model_copy(update={"scene": "sand", "relation": None})]
    )
    assert answers["object"].true == ["tree", recognition.NOTHING, recognition.NOTHING]
    assert answers["object"].found == [recognition.NOTHING, "cat", "car"]


# ── the judge ──


def test_arrangements_hold_objects_that_do_not_hide_each_other():
    rng = np.random.default_rng(3)
    numbers = set()
    for _ in range(40):
        place, placed = arrange(rng)
        assert all(0 <= edge <= 1 for each in placed for edge in each.box)
        numbers.add(len(placed))
        assert len(seen_in(place, placed).detections) == len(placed)
    assert {1, 4} <= numbers


def test_boxes_hold_what_is_drawn():
    """A box covers the pixels in which pictures with and without its object differ most."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        scene = replace(sample_scene(rng, "train"), place="room")
        (placed, *_) = layout(scene, latents(scene))
        background = [0.0] * 20
        change = np.abs(draw("room", background, [placed], 64).astype(int) - draw("room", background, [], 64)).sum(-1)
        left, top, right, bottom = (round(64 * edge) for edge in placed.box)
        inside = change[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2].sum()
        assert inside > 0.85 * change.sum()


def labels(scenes):
    """The scenes as the judge is trained on them."""
    pixels = np.stack([render(scene, 64) for scene in scenes])
    boxes, values = np.zeros((len(scenes), 6, 4), np.float32), np.full((len(scenes), 6, 4), -1, np.int64)
    for i, scene in enumerate(scenes):
        for k, each in enumerate(truth(scene).detections):
            boxes[i, k] = each.box
            values[i, k] = [int(each.chances[role].argmax()) for role in ROLES]
    return Labelled(pixels, boxes, values, np.array([int(truth(scene).places.argmax()) for scene in scenes]))


def test_mirrored_pictures_have_mirrored_boxes():
    square = np.zeros((1, 64, 64, 3), np.uint8)
    square[0, 8:24, 40:60] = 255
    boxes, values = np.zeros((1, 6, 4), np.float32), np.full((1, 6, 4), -1, np.int64)
    boxes[0, 0], values[0, 0] = (40 / 64, 8 / 64, 60 / 64, 24 / 64), 0
    draw_batch = batches(Labelled(square, boxes, values, np.zeros(1, np.int64)), JudgeRecipe(batch=16, empty=0))
    images, boxes, *_ = draw_batch(0)
    lefts = set()
    for image, box in zip(images, boxes[:, 0], strict=True):
        left, top, right, bottom = (box * 64).round().int().tolist()
        assert image[:, top:bottom, left:right].mean() > image.mean() + 0.3
        lefts.add(left)
    assert lefts == {40, 4}


def test_a_cell_is_a_centre_exactly_where_an_object_is():
    near = nearness(torch.tensor([[[0.1, 0.1, 0.5, 0.4], [0.6, 0.5, 0.9, 0.9]]]))
    assert (near == 1).sum(-1).tolist() == [[1, 1]]
    assert cells()[near[0, 1].argmax()].tolist() == pytest.approx([0.75, 0.7], abs=0.5 / GRID)


def test_only_peaks_above_the_threshold_are_seen():
    presence = torch.full((1, GRID * GRID), -6.0)
    presence[0, 3 * GRID + 4], presence[0, 3 * GRID + 5], presence[0, 12 * GRID + 10] = 3.0, 2.0, -0.5
    roles = {role: torch.zeros(1, GRID * GRID, len(VALUES[role])) for role in ROLES}
    roles["object"][0, 3 * GRID + 4, 2] = 5.0
    maps = Maps(presence, torch.full((1, GRID * GRID, 4), 0.1), roles, torch.zeros(1, 6))
    (found,) = sight(maps, 0.5)
    (one,) = found.detections
    assert one.value("object") == "rabbit"
    assert one.centre == pytest.approx((4.5 / GRID, 3.5 / GRID))
    assert len(sight(maps, 0.3)[0].detections) == 2


def test_the_judge_learns_a_handful_by_heart():
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, "train") for _ in range(4)]
    data = labels(scenes)
    torch.manual_seed(0)
    judge = Judge().train()
    tensors = [torch.from_numpy(part) for part in (data.boxes, data.values, data.places)]
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimiser = torch.optim.AdamW(judge.parameters(), 3e-3)
    for _ in range(50):
        value, _ = loss(judge, Batch(images, *tensors))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    judge.eval()
    assert figures(judge, data)["everything"] == 1
    assert [sorted(d.value("object") for d in s.detections) for s in judge.look(list(data.pixels))] == [
        sorted(d.value("object") for d in truth(scene).detections) for scene in scenes
    ]


def test_the_tags_are_genevals():
    assert GENEVAL == ("single_object", "two_object", "counting", "colors", "position", "color_attr")
