"""`tuwen evaluate` from the command to the page in a browser; the shipped judge on pictures whose truth is known."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support.browser import chromium, open_page
from tests.support.compose import ROOT
from tests.support.waiting import PATIENT
from workers.lab.evaluation.judge import Judge
from workers.lab.evaluation.judging import trial
from workers.lab.evaluation.prompts import GENEVAL, prompts


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder that a small evaluation wrote."""
    out = tmp_path_factory.mktemp("report")
    command = [sys.executable, "-m", "api.cli", "evaluate", "--prompts", "2", "--pictures", "100", "--threads", "1"]
    command += ["--sections", "generation", "recognition", "pairs", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENT, check=False)
    assert done.returncode == 0, done.stderr
    assert "mean of the six" in done.stdout
    return out


def test_the_report_has_figures_with_intervals_and_goals(report):
    told = json.loads((report / "report.json").read_text())
    assert told["about"]["protocol"] == "GenEval protocol, closed domain"
    for column in ("seen", "unseen"):
        assert set(told["generation"][column]["tags"]) == set(GENEVAL)
        six = told["generation"][column]["mean"]
        tags = [told["generation"][column]["tags"][tag]["at_1"]["value"] for tag in GENEVAL]
        assert six["at_1"]["value"] == pytest.approx(np.mean(tags), abs=1e-3)
        assert six["at_1"]["low"] <= six["at_1"]["value"] <= six["at_1"]["high"]
        assert six["oracle"]["value"] >= six["best"]["value"]
    goals = {goal["what"]: goal for goal in told["goals"]}
    assert goals["recognition macro-F1: seen"]["verdict"] in ("aim", "reached", "missed")
    prompts_file = (report / "evaluation_metadata.jsonl").read_text().splitlines()
    assert {"tag", "include", "prompt"} <= set(json.loads(prompts_file[0]))


@pytest.mark.needs("chromium")
def test_the_page_stands_alone_and_fits_the_window(report):
    asked = []
    with chromium() as browser:
        page = open_page(browser, viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.goto((report / "report.html").as_uri())
        assert page.get_by_role("heading", name="Generated pictures").is_visible()
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 64)")
        assert page.evaluate("document.images.length") > 100
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("column", ["seen", "unseen"])
def test_the_judge_knows_true_from_false(column):
    judge = Judge.load()
    rights = [trial(prompts(tag, column, 6, seed=77), judge, seed=1) for tag in GENEVAL]
    assert np.mean([right["ceiling"] for right in rights]) >= 0.93
    assert np.mean([right["edited"] for right in rights]) <= 0.1
    assert np.mean([np.subtract(right["shuffled"], right["shuffled_true"]) for right in rights]) <= 0.05
