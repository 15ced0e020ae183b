"""`tuwen demo` from end to end, with the models that are shipped: what it says, and that it leaves nothing running."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from api.cli.demo import PROMPTS, SAMPLE_TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("新来的 newcomer")


@pytest.fixture(scope="module")
def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished demo, run in `folder` as a newcomer would: no options."""
    return subprocess.run(
        [sys.executable, "-m", "api.cli", "demo"], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


def _about(demo: subprocess.CompletedProcess[str], title: str) -> dict[str, list[str]]:
    """Label → lines of what was printed about one picture."""
    _, _, rest = demo.stdout.partition(f"\n{title}  ")
    found: dict[str, list[str]] = {}
    label = ""
    for line in rest.splitlines()[1:]:
        if not line.startswith("  "):
            break
        label = line[2:10].strip() or label
        found.setdefault(label, []).append(line[11:])
    return found


def test_it_succeeds_and_gives_the_addresses(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stderr
    assert re.search(r"API docs +http://127\.0\.0\.1:\d+/docs", demo.stderr)
    assert re.search(r"Flower +http://127\.0\.0\.1:\d+", demo.stderr)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_cat_is_drawn_and_recognised(demo: subprocess.CompletedProcess[str], folder: Path, prompt: str) -> None:
    with Image.open(folder / ".tuwen" / "demo" / "images" / f"{prompt}.png") as image:
        assert image.width >= 64
    assert f"{prompt}  .tuwen/demo/images/{prompt}.png" in demo.stdout
    about = _about(demo, prompt)
    assert "猫" in about["zh"][0]
    assert "cat" in about["en"][0]
    assert about["objects"][0].startswith("cat 猫")
    assert "black" in about["objects"][0]


def test_the_picture_file_is_described_in_both_languages(demo: subprocess.CompletedProcess[str]) -> None:
    about = _about(demo, "a picture file")
    assert "兔" in about["zh"][0]
    assert "rabbit" in about["en"][0]
    assert {line.split()[0] for line in about["objects"][:2]} == {"rabbit", "car"}


def test_the_text_that_fits_scores_best(demo: subprocess.CompletedProcess[str]) -> None:
    for title in (*PROMPTS, "a picture file"):
        scores = {text: float(score) for score, text in (line.split("  ") for line in _about(demo, title)["match"])}
        fitting = {SAMPLE_TEXT} if title == "a picture file" else set(PROMPTS)
        assert max(scores, key=lambda text: scores[text]) in fitting


def test_nothing_is_left_running(demo: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert re.search(r"all of its \d+ processes have ended", demo.stderr)
    left = []
    for process in psutil.process_iter():
        try:
            belongs = str(folder) in " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if belongs:
            left.append(process)
    assert not left
