"""Training by processes that are killed, and by several at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training_child import run
from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import load_checkpoint
from workers.lab.training.loading import load

ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def assert_same_run(one: Path, other: Path, *, tolerance: float = 0.0) -> None:
    """Assert that two runs kept the same weights, and everything else that training would go on from."""
    for name, weight in load_file(one / "weights.safetensors").items():
        torch.testing.assert_close(load_file(other / "weights.safetensors")[name], weight, rtol=0, atol=tolerance)
    states = load_checkpoint(one), load_checkpoint(other)
    assert states[0] is not None
    assert states[1] is not None
    for part in ("model", "average", "optimiser"):
        torch.testing.assert_close(states[1][part], states[0][part], rtol=0, atol=tolerance)


def test_a_process_killed_at_any_moment_goes_on_to_the_same_result(tmp_path: Path) -> None:
    # With a checkpoint after each step, most of the time goes into writing them: kills hit that too.
    arguments = ["--steps", "60", "--checkpoint-every", "1", "--pause", "0.01"]
    command = [sys.executable, "-m", "tests.support.training_child", str(tmp_path / "killed"), *arguments]
    lots = random.Random(4)
    reached = [0]
    for _ in range(2):
        child = subprocess.Popen(command, cwd=ROOT)
        while step_of(tmp_path / "killed") <= reached[-1]:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(lots.uniform(0, 0.3))
        child.kill()
        child.wait()
        reached.append(step_of(tmp_path / "killed"))
    assert 0 < reached[1] < reached[2] < 60
    subprocess.run(command, cwd=ROOT, check=True)
    run(tmp_path / "whole", steps=60)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/progress.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def step_of(run: Path) -> int:
    """The step of the latest checkpoint."""
    return max((int(folder.name.removeprefix("checkpoint-")) for folder in run.glob("checkpoint-*")), default=0)


def test_two_processes_reach_the_result_of_one(tmp_path: Path) -> None:
    arguments = ["--nproc-per-node", "2", "-m", "tests.support.training_child", str(tmp_path / "two"), "--parts", "4"]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments], cwd=ROOT, check=True)
    run(tmp_path / "one", steps=24, parts=4)
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-6)
    one, two = (json.loads((tmp_path / name / "weights.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["metrics"]["error"] == pytest.approx(one["metrics"]["error"], rel=1e-4)
    logs = [[json.loads(line) for line in (tmp_path / name / "progress.jsonl").open()] for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"]
        assert {k: v for k, v in b.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in a.items() if k != "seconds"}, rel=1e-4
        )


def test_parts_that_processes_cannot_share_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConfigurationError, match="--parts 2"):
        run(tmp_path, steps=1, parts=3)


def test_batches_made_ahead_by_processes_come_in_their_order() -> None:
    def batch(number: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return torch.full((2,), number), (torch.tensor(number), torch.tensor(-number))

    feed = load(batch, iter(range(3, 20, 2)), torch.device("cpu"), processes=2)
    found = [(first.tolist(), one.item(), other.item()) for first, (one, other) in feed]
    assert found == [([n, n], n, -n) for n in range(3, 20, 2)]
