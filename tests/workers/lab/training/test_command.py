"""`tuwen train`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.waiting import PATIENT
from workers.lab.world.render import render
from workers.scenes.grammar import caption, sample_scene


def tuwen(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENT, check=False)


def test_a_model_is_trained_on_a_folder_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(30):
        scene = sample_scene(rng, "train")
        Image.fromarray(render(scene, 64)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption(scene, "en", "short", rng))
    few = ("--steps", "1", "--batch", "2", "--threads", "1", "--optimizer", "sgd", "--schedule", "linear")
    done = tuwen("train", "recognizer", "--data", tmp_path, "--out", tmp_path / "run", *few)
    assert done.returncode == 0, done.stderr
    assert '"images": 30' in done.stderr
    facts = json.loads((tmp_path / "run/shipped.json").read_text())
    assert facts["config"]["optimiser"] == "sgd"
    assert facts["config"]["schedule"] == "linear"
    assert facts["seed"] == 0
    assert (tmp_path / "run/curves.png").exists()


def test_what_cannot_be_trained_is_said_in_one_line(tmp_path: Path) -> None:
    failed = tuwen("train", "matcher", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert failed.returncode == 1
    assert "nowhere" in failed.stderr
    assert "Traceback" not in failed.stderr
