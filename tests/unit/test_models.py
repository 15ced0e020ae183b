"""Recogniser, describer and matcher: shapes, and that each can learn a handful of pictures by heart."""

import numpy as np
import pytest
import torch

from workers.models.describer import Describer, write
from workers.models.matcher import Matcher, log_odds
from workers.models.recognizer import PAIRS, Recognizer, interpret
from workers.models.text import END, vocabulary
from workers.models.trunk import DomainHead
from workers.scenes.grammar import OPPOSITE, caption, edit, slots
from workers.training import describer, matcher, recognizer
from workers.training.data import Pictures, disturb, draw_batch, pictures, recolour, tilt, to_tensor
from workers.training.measures import auroc, calibration_error
from workers.training.outliers import FAMILIES, HELD_OUT, outliers

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def data() -> Pictures:
    return pictures("train", 12)


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


def test_the_recogniser_learns_a_handful_by_heart(data):
    recipe = recognizer.RecognizerRecipe(batch=6, outliers=2, recolour=0.0, tilt=0.0)
    model = recognizer.make_recognizer(recipe)
    batch = images, facts, inside, *_ = recognizer.batches(data, recipe)(0)
    learn(model, recognizer.loss, batch, 50)
    with torch.no_grad():
        found = interpret(model(images))
    read = np.stack([slots(each.scene) for each in found[:6]])
    assert (read == facts[inside].numpy()).mean() > 0.95
    assert [each.in_domain > 0.5 for each in found] == inside.tolist()


def test_a_reading_has_a_row_for_each_object_and_pair():
    reading = Recognizer().eval()(torch.zeros(2, 3, 64, 64))
    assert reading.presence.shape == (2, 10)
    assert reading.colour.shape == (2, 10, 8)
    assert reading.relation.shape == (2, len(PAIRS), 4)
    assert reading.domain.shape == (2,)


def test_the_describer_learns_a_handful_by_heart(data):
    recipe = describer.DescriberRecipe(batch=6, outliers=2)
    model = describer.make_describer(recipe)
    few = Pictures(data.scenes[:6], data.pixels[:6])
    images = to_tensor(few.pixels)
    vocab = vocabulary()
    captions = [(lang, caption(scene.canonical(), lang, "short")) for scene in few.scenes for lang in ("zh", "en")]
    told = describer.padded([[vocab.begin(lang, "short"), *vocab.encode(text)[:-1]] for lang, text in captions])
    right = describer.padded([vocab.encode(text) for _, text in captions])
    learn(model, describer.loss, (images, told.view(6, 2, -1), right.view(6, 2, -1)), 60)
    assert describer.caption_figures(model, few)["zh_f1"] > 0.8
    assert describer.caption_figures(model, few, beams=1)["en_f1"] > 0.8


def test_misremembered_captions_have_as_many_tokens(data):
    rng = np.random.default_rng(0)
    for scene in data.scenes:
        wrong = describer.misremembered(scene, rng)
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
    own = [matcher.say(scene, rng, 0.3) for scene in data.scenes]
    edited = [matcher.say(edit(scene, rng), rng, 0.0) for scene in data.scenes]
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


def test_recolouring_keeps_greys_and_marks_what_it_changed(data):
    images = to_tensor(data.pixels)
    turned, coloured = recolour(images, 0.5, np.random.default_rng(0))
    same = (turned == images).flatten(1).all(1)
    assert same[coloured].all()
    assert not same[~coloured].all()
    # Greys lie on the axis of the rotation.
    grey = torch.zeros(4, 3, 8, 8)
    assert torch.allclose(recolour(grey + 0.3, 1.0, np.random.default_rng(1))[0], grey + 0.3, atol=1e-5)


def test_tilting_leaves_upright_pictures_alone(data):
    images = to_tensor(data.pixels)
    tilted, upright = tilt(images, 0.5, np.random.default_rng(0))
    assert 0 < upright.sum() < len(images)
    assert torch.allclose(tilted[upright], images[upright], atol=1e-4)
    assert ((tilted - images).abs().flatten(1).mean(1)[~upright] > 0.02).all()


def test_outliers_come_from_every_family(data):
    rng = np.random.default_rng(0)
    for families in (FAMILIES, HELD_OUT):
        for name, family in families.items():
            picture = family(rng, 64, data.pixels[0])
            assert picture.shape == (64, 64, 3), name
            assert picture.dtype == np.uint8, name
    assert outliers(5, rng, data.pixels).shape == (5, 64, 64, 3)


def test_cached_pictures_are_the_rendered_ones(data, tmp_path):
    cached = pictures("train", 12, cache=tmp_path)
    assert np.array_equal(cached.pixels, data.pixels)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert np.array_equal(pictures("train", 12, cache=tmp_path).pixels, data.pixels)
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
