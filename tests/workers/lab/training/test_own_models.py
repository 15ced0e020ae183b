"""The built-in models trained on own pictures, a few steps each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuwen.engine import DescribeItem, GenerateItem, Picture, RecognizeItem
from tuwen.errors import ConfigurationError
from tuwen.jobs import DescribeResult, RecognizeResult
from workers.engines import builtin
from workers.lab.training import runs
from workers.lab.training.__main__ import run
from workers.lab.training.folds import folds, summarise
from workers.lab.training.options import TrainOptions
from workers.lab.training.own import describer, matcher
from workers.lab.training.own.runs import TRAINABLES, describe_pictures, train_own
from workers.lab.world.render import render
from workers.models.text import UNKNOWN, Vocabulary, unknown_words, vocabulary
from workers.scenes.grammar import Scene, Thing, caption, sample_scene
from workers.scenes.lexicon import KEYS

pytestmark = pytest.mark.usefixtures("one_torch_thread")


pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures stand for photographs; their captions have words that the drawn world does not."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    lines = []
    for number in range(40):
        scene = sample_scene(rng, "train")
        Image.fromarray(render(scene, 64)).save(folder / f"{number}.png")
        texts = [
            caption(scene, "en", "short", rng) + " near a lighthouse",
            caption(scene, "zh", "short", rng) + "，灯塔",
        ]
        lines.append(json.dumps({"file_name": f"{number}.png", "captions": texts}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def options(photos: Path, out: Path, *more: str) -> TrainOptions:
    return TrainOptions.parse([*more, "--data", str(photos), "--out", str(out), "--device", "cpu"])


FEW = ("--steps", "3", "--batch", "4", "--validate-every", "2", "--warmup", "1")


@pytest.mark.parametrize("model", ["recognizer", "describer", "matcher"])
def test_each_model_learns_from_own_pictures_and_is_stored_with_its_words(
    photos: Path, tmp_path: Path, model: str
) -> None:
    given = options(photos, tmp_path, model, *FEW)
    assert train_own(given)
    facts = json.loads((tmp_path / "shipped.json").read_text())
    assert facts["config"]["steps"] == 3
    assert facts["data"]["images"] == 40
    assert any(name.startswith("test/") for name in facts["metrics"])
    assert all(np.isfinite(value) for value in facts["metrics"].values())
    words = Vocabulary.beside(tmp_path / "shipped.safetensors")
    assert ("lighthouse" in words.ids) is (model != "recognizer")
    made = TRAINABLES[model](words, KEYS).build(runs.make_recipe(given))
    builtin.load(made, tmp_path / "shipped.safetensors", "cpu")


def test_the_generator_learns_plans_codes_and_a_rival(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs.RECIPES["generator"]
    monkeypatch.setattr(
        "workers.lab.training.own.runs.make_recipe",
        lambda _: made(steps=2, batch=2, planner_steps=2, planner_batch=4, rival_steps=1, warmup=1, validate_every=2),
    )
    assert train_own(options(photos, tmp_path, "generator"))
    facts = json.loads((tmp_path / "shipped.json").read_text())
    assert set(facts["step"]) == {"planner", "painter", "rivals"}
    assert 0 <= facts["metrics"]["test/plan"] <= 1
    monkeypatch.setattr(builtin, "WEIGHTS", tmp_path)
    for suffix in ("safetensors", "json"):
        (tmp_path / f"shipped.{suffix}").rename(tmp_path / f"generator.{suffix}")
    engine = builtin.BuiltinGenerator("cpu")
    (picture,) = engine.run([GenerateItem("a black cat near a lighthouse and a volcano", seed=1)], Quiet())
    assert isinstance(picture, Picture)
    assert "volcano" in picture.unknown_words
    assert "lighthouse" not in picture.unknown_words


class Quiet:
    """Nobody watches and nobody cancels."""

    def progress(self, step: int, steps: int) -> None: ...

    def cancelled(self, index: int) -> bool:
        return False


def test_the_recogniser_learns_own_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        # Gnus are bright and zebras are dark, which a few steps are enough to see.
        gnu = bool(rng.random() < 0.5)
        noise = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(190 if gnu else 0)).save(photos / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "objects": "gnu" if gnu else "zebra", "place": "savanna"})
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ("--steps", "40", "--batch", "12", "--validate-every", "20", "--warmup", "2", "--ema", "0.8")
    assert train_own(options(photos, tmp_path / "run", "recognizer", *more))
    facts = json.loads((tmp_path / "run/shipped.json").read_text())
    assert facts["labels"]["object"] == ["gnu", "zebra"]
    assert facts["metrics"]["test/objects"] > 0.9
    for suffix in ("safetensors", "json"):
        (tmp_path / f"run/shipped.{suffix}").rename(tmp_path / f"recognizer.{suffix}")
    monkeypatch.setattr(builtin, "WEIGHTS", tmp_path)
    engine = builtin.BuiltinRecognizer("cpu")
    (found,) = engine.run([RecognizeItem(np.full((64, 64, 3), 220, np.uint8))], Quiet())
    assert isinstance(found, RecognizeResult)
    assert [(thing.name, thing.name_zh) for thing in found.objects] == [("gnu", "gnu")]
    assert found.scene == "savanna"


def test_the_describer_comes_to_use_own_words(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = str(builtin.WEIGHTS / "describer.safetensors")
    trunk = str(builtin.WEIGHTS / "recognizer.safetensors")
    more = ("--start", start, "--trunk", trunk, "--steps", "60", "--batch", "16", "--rate", "0.005", "--ema", "0.9")
    assert train_own(options(photos, tmp_path, "describer", *more, "--validate-every", "30", "--warmup", "5"))
    for suffix in ("safetensors", "json"):
        (tmp_path / f"shipped.{suffix}").rename(tmp_path / f"describer.{suffix}")
    monkeypatch.setattr(builtin, "WEIGHTS", tmp_path)
    pixels = np.array(Image.open(photos / "0.png"))
    (result,) = builtin.BuiltinDescriber("cpu").run([DescribeItem(pixels, "en", "short")], Quiet())
    assert isinstance(result, DescribeResult)
    assert result.text.endswith("lighthouse")


def test_missing_captions_are_filled_by_the_shipped_describer() -> None:
    scene = Scene((Thing("boat", "red"),), "water", seed=3)
    (english,) = describe_pictures(render(scene, 64)[None], "en", "cpu")
    assert {"boat", "red"} <= set(english.replace(",", "").split())
    (chinese,) = describe_pictures(render(scene, 64)[None], "zh", "cpu")
    assert "红色的船" in chinese


def test_a_cut_run_goes_on_where_it_was(photos: Path, tmp_path: Path) -> None:
    given = replace(options(photos, tmp_path, "matcher", *FEW), minutes=0.0)
    slices = 0
    while not train_own(given):
        slices += 1
    assert slices == 2
    run(options(photos, tmp_path, "matcher", *FEW))  # finished: nothing is trained or judged again
    with pytest.raises(ConfigurationError, match="another recipe"):
        train_own(options(photos, tmp_path, "matcher", *FEW, "--dropout", "0.3"))


def test_cross_validation_reports_mean_and_spread(photos: Path, tmp_path: Path) -> None:
    run(options(photos, tmp_path, "recognizer", *FEW, "--folds", "2"))
    told = json.loads((tmp_path / "folds.json").read_text())
    assert len(told["folds"]) == 2
    for name, mean in told["mean"].items():
        values = [fold[name] for fold in told["folds"]]
        assert mean == pytest.approx(np.mean(values))
        assert told["spread"][name] == pytest.approx(np.std(values, ddof=1))


def test_folds_are_parts_of_equal_size() -> None:
    parts = folds(11, 3, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert sorted(len(part) for part in parts) == [3, 4, 4]
    with pytest.raises(ConfigurationError, match="cannot be cut"):
        folds(2, 3, seed=0)
    assert summarise([{"a": 1.0, "b": 2.0}, {"a": 3.0}])["mean"] == {"a": 2.0}


def test_an_option_that_a_model_has_no_use_for_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no use for --trunk"):
        train_own(options(photos, tmp_path, "recognizer", "--trunk", "x.safetensors"))


def test_all_models_are_trained_in_the_time_there_is(tmp_path: Path) -> None:
    given = list(runs.options_of_each(TrainOptions.parse(["all", "--out", str(tmp_path), "--batch", "3"])))
    assert [mine.model for mine in given] == ["recognizer", "describer", "matcher", "generator"]
    assert [mine.folder.name for mine in given] == ["recognizer", "describer", "matcher", "generator"]
    trunks = [mine.recipe.get("trunk") for mine in given]
    recognizer = str(tmp_path / "recognizer/shipped.safetensors")
    assert trunks == [None, recognizer, recognizer, None]
    assert [runs.make_recipe(mine).steps for mine in given[:3]] == [12_000, 6000, 12_000]
    assert {runs.make_recipe(mine).batch for mine in given} == {3}
    shorter = TrainOptions.parse(["all", "--steps", "7"])
    assert {runs.make_recipe(mine).steps for mine in runs.options_of_each(shorter)} == {7}


def test_own_words_come_after_the_grammars() -> None:
    words = Vocabulary.of(["a lighthouse", "two lighthouses near a lighthouse", "灯塔", "灯塔"])
    assert words.own == ("lighthouse", "塔", "灯")
    assert words.symbols[: len(vocabulary())] == vocabulary().symbols
    assert UNKNOWN not in words.encode("a lighthouse 灯塔")
    assert words.decode(words.encode("a black lighthouse")) == "a black lighthouse"
    assert unknown_words("a lighthouse and a volcano", words) == ("volcano",)
    assert unknown_words("a lighthouse") == ("lighthouse",)


def test_edited_captions_are_false_and_of_the_same_kind() -> None:
    rng = np.random.default_rng(0)
    found = {matcher.exchange_word("two black cats near a lighthouse", rng) for _ in range(60)}
    assert "two black cats near a lighthouse" not in found
    assert all(text is not None and text.endswith("near a lighthouse") for text in found)
    assert {"two black dogs near a lighthouse", "two red cats near a lighthouse"} <= found
    assert matcher.exchange_word("一只黑猫", rng) != "一只黑猫"
    assert matcher.exchange_word("a lighthouse", rng) is None


def test_unknown_words_are_told_but_never_asked_for() -> None:
    told, right = describer.make_lessons(["a volcano"], vocabulary(), np.random.default_rng(0))
    assert UNKNOWN in told[0].tolist()
    assert UNKNOWN not in right[0].tolist()
