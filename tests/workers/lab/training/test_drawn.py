"""Training on the drawn world from the command line's options to stored weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workers.engines.builtin import load
from workers.lab.training import data, drawn, runs
from workers.lab.training.__main__ import run
from workers.lab.training.data import Pictures
from workers.lab.training.options import TrainOptions
from workers.lab.training.progress import TrainingLog
from workers.models.recognizer import Recognizer
from workers.scenes.grammar import Split

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FEW = ("--pictures", "12", "--checked", "4", "--judged", "4", "--steps", "2", "--batch", "4", "--warmup", "1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def pictures(split: Split, count: int, **_: Any) -> Pictures:
        return data.draw_pictures(split, count)

    # A dozen pictures are drawn here and now, not by processes into a cache.
    monkeypatch.setattr(drawn, "draw_pictures", pictures)
    monkeypatch.setattr(drawn, "RENDERED", 4)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)


def options(out: Path, *more: str) -> TrainOptions:
    return TrainOptions.parse(["recognizer", *FEW, *more, "--out", str(out), "--device", "cpu"])


def test_a_finished_run_is_judged_and_stored_with_what_made_it(tmp_path: Path) -> None:
    run(options(tmp_path, "--optimizer", "adam", "--weight-decay", "0.2", "--dropout", "0.3", "--seed", "5"))
    facts = json.loads((tmp_path / "shipped.json").read_text())
    told = {name: facts["config"][name] for name in ("optimiser", "weight_decay", "dropout", "seed", "steps")}
    assert told == {"optimiser": "adam", "weight_decay": 0.2, "dropout": 0.3, "seed": 5, "steps": 2}
    assert {"seen/scene", "unseen/scene", "outliers_held_out"} <= facts["metrics"].keys()
    assert (facts["pictures"], facts["judged"], facts["data_seed"]) == (12, 4, 0)
    load(Recognizer(), tmp_path / "shipped.safetensors", "cpu")


def test_what_is_stored_is_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(options(tmp_path))
    before = (tmp_path / "shipped.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(runs, "store", lambda *_: pytest.fail("stored twice"))
    run(options(tmp_path))
    assert (tmp_path / "shipped.safetensors").stat().st_mtime_ns == before


def test_folds_of_the_drawn_world_go_on_where_they_were_cut(tmp_path: Path) -> None:
    given = options(tmp_path, "--folds", "3", "--minutes", "0")
    slices = 0
    while not (tmp_path / "folds.json").exists():
        run(given)
        slices += 1
    assert slices == 4
    told = json.loads((tmp_path / "folds.json").read_text())
    assert len(told["folds"]) == 3
    assert "scene" in told["mean"]
