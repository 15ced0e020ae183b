"""Recogniser, describer and matcher: shapes, and that each can learn a handful of pictures by heart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workers.lab.training import describer, matcher, recognizer
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.data import Pictures, disturb, draw_batch, draw_pictures, to_tensor
from workers.lab.training.disguise import retone, tilt
from workers.lab.training.frozen import encode, read
from workers.lab.training.imagined import imagine
from workers.lab.training.measures import auroc, calibration_error
from workers.lab.training.outliers import FAMILIES, HELD_OUT, make_outliers
from workers.models.concepts import FEATURES, TOKENS, concepts
from workers.models.describer import Describer, write
from workers.models.matcher import Matcher, log_odds
from workers.models.recognizer import N_OBJECTS, PAIRS, Reading, Recognizer, interpret
from workers.models.text import END, vocabulary
from workers.models.trunk import DomainHead
from workers.scenes.grammar import OPPOSITE, Scene, Thing, caption, edit, sample_scene, slots
from workers.scenes.lexicon import KEYS

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def data() -> Pictures:
    return draw_pictures("train", 12)


def learn(model, loss, batch, steps, rate=3e-3):
    """The loss before and after some steps on the same batch."""
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    values = []
    for _ in range(steps):
        value, _ = loss(model.train(), batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    model.eval()
    return values


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory) -> tuple[Recognizer, recognizer.Batch, Path]:
    """A recogniser that knows a handful of pictures by heart, these pictures, and its weights."""
    recipe = recognizer.RecognizerRecipe(batch=6, outliers=2, retone=0.0, bare=0.0, tilt=0.0)
    model = recognizer.make_recognizer(recipe)
    batch = recognizer.batches(data, recipe)(0)
    learn(model, recognizer.loss, batch, 70)
    path = tmp_path_factory.mktemp("learnt") / "recognizer.safetensors"
    save_weights(path, model.state_dict(), {})
    return model, batch, path


def test_the_recogniser_learns_a_handful_by_heart(learnt):
    model, (images, facts, inside, *_), _ = learnt
    with torch.no_grad():
        found = interpret(model(images))
    facts_read = np.stack([slots(each.scene) for each in found[:6]])
    right = (facts_read == facts[inside].numpy()).mean()
    assert right > 0.95
    assert [each.in_domain > 0.5 for each in found] == inside.tolist()


def test_describer_and_matcher_take_the_recogniser_over_as_it_is(learnt):
    model, (images, *_), weights = learnt
    describing = describer.make_describer(describer.DescriberRecipe(trunk=str(weights))).train()
    matching = matcher.make_matcher(matcher.MatcherRecipe(trunk=str(weights))).train()
    for taken in (describing.eyes.recognizer, matching.trunk):
        assert not any(weight.requires_grad for weight in taken.parameters())
    with torch.no_grad():
        reading = model(images)
    assert torch.equal(read(describing.eyes.recognizer, images).presence, reading.presence)
    assert torch.equal(encode(matching.trunk, images), reading.tokens)


def test_a_reading_has_a_row_for_each_object_and_pair():
    reading = Recognizer().eval()(torch.zeros(2, 3, 64, 64))
    assert reading.presence.shape == (2, 10)
    assert reading.colour.shape == (2, 10, 8)
    assert reading.relation.shape == (2, len(PAIRS), 4)
    assert reading.domain.shape == (2,)


def test_the_describer_learns_a_handful_by_heart(learnt, data):
    """Its eyes know the pictures, it has to learn the words, and then it says what they see."""
    recipe = describer.DescriberRecipe(batch=6, trunk=str(learnt[2]))
    model = describer.make_describer(recipe)
    images = learnt[1][0][:6]
    scenes = [each.scene for each in interpret(learnt[0](images))]
    vocab = vocabulary()
    captions = [(lang, caption(scene.canonical(), lang, "short")) for scene in scenes for lang in ("zh", "en")]
    told = describer.pad_rows([[vocab.begin(lang, "short"), *vocab.encode(text)[:-1]] for lang, text in captions])
    right = describer.pad_rows([vocab.encode(text) for _, text in captions])
    batch = describer.Batch(images, imagine([], np.random.default_rng()), told.view(6, 2, -1), right.view(6, 2, -1))
    learn(model, describer.loss, batch, 80)
    few = Pictures(scenes, as_pixels(images))
    assert describer.caption_figures(model, few)["zh_f1"] > 0.8
    assert describer.caption_figures(model, few, beams=1)["en_f1"] > 0.8


def as_pixels(images):
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def test_misremembered_captions_have_as_many_tokens(data):
    rng = np.random.default_rng(0)
    for scene in data.scenes:
        wrong = describer.misremember(scene, rng)
        for language in ("zh", "en"):
            for style in ("short", "detailed", "tags"):
                lengths = {len(vocabulary().encode(caption(s.canonical(), language, style))) for s in (scene, wrong)}
                assert len(lengths) == 1


def test_writing_stops_when_told_and_reports_each_tokens_confidence():
    model = Describer().eval()
    sight, _ = model.look(torch.zeros(3, 3, 64, 64))
    begin = torch.tensor([vocabulary().begin("zh", "short")] * 3)
    written = write(model, sight, begin, max_tokens=20, step=lambda count: count < 5)
    assert all(len(each.ids) <= 5 and all(0 < p <= 1 for p in each.confidences) for each in written)
    assert all(END not in each.ids for each in written)


def test_a_wider_beam_finds_no_less_probable_captions():
    torch.manual_seed(0)
    model = Describer().eval()
    sight, _ = model.look(torch.randn(4, 3, 64, 64))
    begin = torch.tensor([vocabulary().begin("en", "short")] * 4)
    greedy, beam = (write(model, sight, begin, beams=beams, max_tokens=4) for beams in (1, 6))
    for one, many in zip(greedy, beam, strict=True):
        assert np.log(many.confidences).sum() >= np.log(one.confidences).sum() - 1e-4


def test_the_matcher_learns_true_from_edited(data):
    recipe = matcher.MatcherRecipe(batch=6)
    model = matcher.make_matcher(recipe)
    batch = matcher.batches(data, recipe)(0)
    values = learn(model, matcher.loss, batch, 60)
    assert values[-1] < 0.25 * values[0]
    images, ids, fits = batch
    with torch.no_grad():
        log_p = model.evidence(model.encode_images(images), model.encode_texts(ids), pairwise=False)
        own = model.evidence(model.encode_images(images), model.encode_texts(ids[:6]), pairwise=True)
    assert auroc(log_p[fits].numpy(), log_p[~fits].numpy()) > 0.97
    assert torch.allclose(own, log_p.diagonal(), atol=1e-4)


def test_a_matchers_answer_does_not_depend_on_the_length_of_other_texts():
    model = Matcher().eval()
    image = model.encode_images(torch.zeros(1, 3, 64, 64))
    alone = torch.from_numpy(vocabulary().encode_batch(["a cat"]))
    padded = torch.from_numpy(vocabulary().encode_batch(["a cat", "two black cats sleeping in the room"]))[:1]
    scores = [model.evidence(image, model.encode_texts(ids), pairwise=True) for ids in (alone, padded)]
    assert torch.allclose(*scores, atol=1e-6)


def test_log_odds_are_the_logit():
    p = torch.tensor([1e-6, 0.2, 0.5, 0.99])
    assert torch.allclose(log_odds(p.log()), p.logit(), atol=1e-3)
    assert torch.isfinite(log_odds(torch.tensor([0.0, -1e4]))).all()


def test_truth_of_texts_is_exact(data):
    rng = np.random.default_rng(0)
    own = [matcher.say_anyhow(scene, rng, 0.3) for scene in data.scenes]
    edited = [matcher.say_anyhow(edit(scene, rng), rng, 0.0) for scene in data.scenes]
    assert matcher.truth(data.scenes, own).diagonal().all()
    assert not matcher.truth(data.scenes, edited).diagonal().any()


def test_mirrored_pictures_swap_left_and_right(data):
    drawn = {id(scene.things): scene for scene in data.scenes}
    mirrored = 0
    for seed in range(10):
        scenes, pixels = draw_batch(data, 12, np.random.default_rng(seed))
        for scene, picture in zip(scenes, pixels, strict=True):
            source = drawn[id(scene.things)]
            original = data.pixels[data.scenes.index(source)]
            flipped = np.array_equal(picture, original[:, ::-1])
            assert flipped or np.array_equal(picture, original)
            if source.relation in ("left", "right") and flipped:
                assert scene.relation == OPPOSITE[source.relation]
                mirrored += 1
    assert mirrored


def test_disturbing_changes_pixels_but_little(data):
    images = to_tensor(data.pixels)
    disturbed = disturb(images, np.random.default_rng(0))
    assert disturbed.shape == images.shape
    assert disturbed.abs().max() <= 1
    assert 0.01 < (disturbed - images).abs().mean() < 0.3


def test_false_colours_change_no_brightness_but_by_their_curve_and_are_marked(data):
    images = to_tensor(data.pixels)
    changed, coloured = retone(images, 0.5, np.random.default_rng(0))
    same = (changed == images).flatten(1).all(1)
    assert same[coloured].all()
    assert not same[~coloured].all()
    assert changed.abs().max() <= 1
    # What is grey stays grey: only its brightness goes through the curve.
    grey = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
    toned = retone(grey.contiguous(), 1.0, np.random.default_rng(1))[0]
    assert torch.allclose(toned.amax(1), toned.amin(1), atol=1e-5)
    assert not torch.allclose(toned, grey, atol=0.05)


def test_tilting_leaves_upright_pictures_alone(data):
    images = to_tensor(data.pixels)
    tilted, upright, change = tilt(images, 0.5, np.random.default_rng(0))
    assert 0 < upright.sum() < len(images)
    assert torch.allclose(tilted[upright], images[upright], atol=1e-4)
    assert torch.equal(change[upright], torch.eye(2, 3).expand(int(upright.sum()), 2, 3))
    assert ((tilted - images).abs().flatten(1).mean(1)[~upright] > 0.02).all()


def test_the_recogniser_is_told_where_things_are_also_in_a_mirror_and_tilted():
    """A white square is drawn where each thing is said to be: cells that are said to hold it are the white ones."""
    scene = Scene((Thing("car", "red"), Thing("tree", "green")), "grass", "left", seed=5)
    truth = recognizer.rectangles([scene])
    side = 64
    black = np.zeros((1, side, side, 3), np.uint8)
    left, top, right, bottom = (truth[0, 0, 0, 0] * side).round().astype(int)
    black[0, top:bottom, left:right] = 255
    data = Pictures([scene], black)
    recipe = recognizer.RecognizerRecipe(batch=8, outliers=0, retone=0.0, bare=0.0, tilt=0.5)
    images, facts, _, _, upright, where, _ = recognizer.batches(data, recipe)(0)
    assert not upright.all()
    assert {int(row[11]) for row in facts} == {1, 2}, "some are mirrored, some are not"
    shown = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).flatten(1)
    said = where[:, 0, 0]
    # What was hidden by a patch is neither white nor black.
    assert said[shown > 0.9].float().mean() > 0.97
    assert said[shown < -0.95].float().mean() < 0.25


def test_actions_are_met_as_often_as_they_are_shown(data):
    met = recognizer.actions_met(np.stack([slots(scene) for scene in data.scenes]))
    for scene in data.scenes:
        for thing in scene.things:
            action = KEYS["action"].index(thing.action) + 1 if thing.action else 0
            assert met[KEYS["object"].index(thing.object), action]
    assert met.sum() == len({(thing.object, thing.action) for scene in data.scenes for thing in scene.things})


def test_an_imagined_reading_is_as_sure_as_it_is_right():
    """The share p of the values given the probability p is true, and none is of a pair held out of training."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, "train") for _ in range(1500)]
    reading = imagine(scenes, rng)
    chances, right = [], []
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            colours = reading.colour[row, KEYS["object"].index(thing.object)].softmax(-1)
            for colour, p in zip(KEYS["colour"], colours.tolist(), strict=True):
                assert p < 0.01 or not Thing(thing.object, colour).unseen
                chances.append(p)
                right.append(colour == thing.colour)
    assert calibration_error(chances, right) < 0.01
    doubtful = [hit for p, hit in zip(chances, right, strict=True) if 0.2 < p < 0.8]
    assert 0.4 < np.mean(doubtful) < 0.6
    assert (reading.presence.sigmoid() > 0.5).sum() == sum(len(scene.things) for scene in scenes)


def test_concepts_say_what_the_reading_says():
    """Logits that are certain of a scene become its tokens; the other object's relation is turned round."""
    reading = certain(Scene((Thing("cat", "black", "jumping"), Thing("tree", "red", None, "small")), "snow", "left"))
    tokens = concepts(reading)[0]
    cat, tree = (KEYS["object"].index(name) for name in ("cat", "tree"))
    assert tokens.shape == (TOKENS, FEATURES)
    assert tokens[cat, N_OBJECTS] == pytest.approx(1, abs=1e-3)
    assert tokens[cat, N_OBJECTS + 1 + KEYS["colour"].index("black")] == pytest.approx(1, abs=1e-3)
    sides = tokens[:N_OBJECTS, N_OBJECTS + 1 + 8 + 7 + 2 + 4 :][:, :4]
    assert sides[cat].argmax() == KEYS["relation"].index("left")
    assert sides[tree].argmax() == KEYS["relation"].index("right")
    absent = [k for k in range(N_OBJECTS) if k not in (cat, tree)]
    assert tokens[absent, N_OBJECTS:].abs().max() < 1e-3


def certain(scene: Scene) -> Reading:
    """The reading of a recogniser that is sure of the scene."""
    read = {
        "presence": torch.full((1, N_OBJECTS), -20.0),
        "relation": torch.zeros(1, len(PAIRS), 4),
        "place": torch.zeros(1, 6),
        **{name: torch.zeros(1, N_OBJECTS, size) for name, size in ATTRIBUTES.items()},
    }
    facts = slots(scene)
    for first in (0, 5):
        if facts[first]:
            k = facts[first] - 1
            read["presence"][0, k] = 20
            values = (facts[first + 1] - 1, facts[first + 2], facts[first + 3] - 1, facts[first + 4] - 1)
            for name, value in zip(ATTRIBUTES, values, strict=True):
                read[name][0, k, value] = 20
    read["place"][0, facts[10] - 1] = 20
    if facts[11]:
        read["relation"][0, PAIRS.index((facts[0] - 1, facts[5] - 1)), facts[11] - 1] = 20
    nothing = torch.zeros(1, N_OBJECTS, 256)
    return Reading(**read, domain=torch.ones(1), evidence=nothing, gaze=nothing, tokens=nothing)


ATTRIBUTES = {"colour": 8, "action": 7, "size": 2, "count": 4}


def test_outliers_come_from_every_family(data):
    rng = np.random.default_rng(0)
    for families in (FAMILIES, HELD_OUT):
        for name, family in families.items():
            picture = family(rng, 64, data.pixels[0])
            assert picture.shape == (64, 64, 3), name
            assert picture.dtype == np.uint8, name
    assert make_outliers(5, rng, data.pixels).shape == (5, 64, 64, 3)


def test_cached_pictures_are_the_rendered_ones(data, tmp_path):
    cached = draw_pictures("train", 12, cache=tmp_path)
    assert np.array_equal(cached.pixels, data.pixels)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert np.array_equal(draw_pictures("train", 12, cache=tmp_path).pixels, data.pixels)
    assert file.stat().st_mtime_ns == before


def test_the_domains_threshold_admits_the_asked_share():
    torch.manual_seed(0)
    head = DomainHead(16).eval()
    tokens = torch.randn(500, 4, 16)
    with torch.no_grad():
        head.admit(head(tokens), share=0.9)
        head.admit(head(tokens), share=0.9)
        assert (head(tokens) >= 0).float().mean() == pytest.approx(0.9, abs=0.01)


def test_measures():
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0, 1], [0, 1]) == 0.5
    assert calibration_error([0.8] * 10, [1] * 8 + [0] * 2) == pytest.approx(0)
    assert calibration_error([1.0, 1.0], [0, 0]) == 1
