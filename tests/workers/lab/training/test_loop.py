"""The training loop on a small regression, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tuwen.errors import ConfigurationError
from workers.lab.training.checkpoint import PART_BYTES, load_checkpoint, save_checkpoint, save_weights
from workers.lab.training.loop import (
    Outcome,
    Validation,
    autocast,
    make_average,
    train,
)
from workers.lab.training.recipe import Recipe

RECIPE = Recipe(steps=24, learning_rate=1e-2, warmup=4, log_every=4, validate_every=8, checkpoint_every=5, ema=0.9)


pytestmark = pytest.mark.usefixtures("no_curves")


def make_model() -> nn.Module:
    torch.manual_seed(7)
    # Dropout makes the result depend on the random state, batch norm on buffers.
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
    return inputs, inputs.sum(1, keepdim=True)


def squares(model: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    error = (model(pair[0]).float() - pair[1]).square().mean()
    return error, {"root": error.detach().sqrt()}


def held_out(model: nn.Module) -> dict[str, float]:
    return {"error": squares(model, batch(10**6))[0].item()}


VALIDATION = Validation(held_out, "error", higher=False)


def clock_of(step_seconds: float) -> Callable[[], float]:
    ticks = count()
    return lambda: next(ticks) * step_seconds


def test_the_loss_falls_and_the_run_says_what_it_was(tmp_path: Path) -> None:
    model = make_model()
    before = held_out(model.eval())["error"]
    outcome = train(model, squares, batch, replace(RECIPE, steps=200), tmp_path, validation=VALIDATION)
    assert outcome.finished
    assert outcome.step == 200
    assert outcome.metrics["error"] < before / 2
    facts = json.loads((tmp_path / "weights.json").read_text())
    assert facts["config"]["learning_rate"] == 1e-2
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["metrics"] == outcome.metrics
    assert facts["step"] == outcome.kept_step


def test_kept_weights_give_the_reported_figure(tmp_path: Path) -> None:
    outcome = train(make_model(), squares, batch, replace(RECIPE, bf16=False), tmp_path, validation=VALIDATION)
    kept = make_model()
    kept.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert held_out(kept.eval())["error"] == pytest.approx(outcome.best)


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
def test_a_run_cut_into_slices_ends_like_an_uncut_one(tmp_path: Path, optimiser: str) -> None:
    recipe = replace(RECIPE, optimiser=optimiser)
    whole = make_model()
    train(whole, squares, batch, recipe, tmp_path / "whole", validation=VALIDATION)
    slices = 0
    outcome = Outcome()
    while not outcome.finished:
        torch.rand(slices)  # whatever happens between slices must not matter
        pieces = make_model()
        outcome = train(
            pieces, squares, batch, recipe, tmp_path / "cut", validation=VALIDATION, minutes=1, clock=clock_of(9)
        )
        slices += 1
    assert slices == 4
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, pieces.state_dict()[name]), name
    for name, weight in load_file(tmp_path / "whole/weights.safetensors").items():
        assert torch.equal(weight, load_file(tmp_path / "cut/weights.safetensors")[name]), name


def test_a_run_killed_between_checkpoints_ends_like_an_uncut_one(tmp_path: Path) -> None:
    def dying(step: int) -> tuple[Tensor, Tensor]:
        if step == 13:
            raise KeyboardInterrupt
        return batch(step)

    whole, killed = make_model(), make_model()
    train(whole, squares, batch, RECIPE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(killed, squares, dying, RECIPE, tmp_path / "killed")
    state = load_checkpoint(tmp_path / "killed")
    assert state is not None
    assert state["outcome"]["step"] == 10
    resumed = make_model()
    train(resumed, squares, batch, RECIPE, tmp_path / "killed")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/progress.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("bf16", "tolerance"),
    [
        # Only the order of the sums differs.
        pytest.param(False, 1e-5, id="float32"),
        # Gradients are rounded to 8 bits before they are averaged, so they are off by 2⁻⁸ at most, and what AdamW does
        # to a weight in each of 24 steps is off by the learning rate times that.
        pytest.param(True, 24 * 1e-2 * 2**-8, id="bfloat16"),
    ],
)
def test_parts_of_a_step_add_up_to_one_batch(
    tmp_path: Path, bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(step: int) -> tuple[Tensor, Tensor]:
        pairs = [batch(3 * step + part) for part in range(3)]
        return torch.cat([inputs for inputs, _ in pairs]), torch.cat([sums for _, sums in pairs])

    # Whatever this processor has: where it has no matrix units for it, torch emulates bfloat16.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    models = []
    for parts, batches in ((3, batch), (1, whole)):
        torch.manual_seed(7)
        models.append(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)))
        train(models[-1], squares, batches, replace(RECIPE, parts=parts, bf16=bf16), tmp_path / str(parts))
    for name, weight in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], weight, rtol=0, atol=tolerance)


def test_mixed_precision_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in ("amx_bf16", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True, "avx2": True})
        assert precision() == torch.bfloat16
        assert precision(wanted=False) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx2": True})
    assert precision() == torch.float32


def precision(wanted: bool = True) -> torch.dtype:
    """The type in which the loop multiplies matrices on the processor."""
    with autocast(torch.device("cpu"), wanted):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_a_slice_ends_with_its_time_budget_and_a_checkpoint(tmp_path: Path) -> None:
    outcome = train(make_model(), squares, batch, RECIPE, tmp_path, minutes=1, clock=clock_of(10))
    assert not outcome.finished
    assert outcome.step == 6
    assert outcome.seconds == 60
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["outcome"]["step"] == 6


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(make_model(), squares, batch, RECIPE, tmp_path)

    def no_more(step: int) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"step {step} after the last one")

    assert train(make_model(), squares, no_more, RECIPE, tmp_path).finished


def test_training_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    validation = Validation(lambda model: {"score": next(scores)}, "score")
    recipe = replace(RECIPE, steps=100, patience=2)
    outcome = train(make_model(), squares, batch, recipe, tmp_path, validation=validation)
    assert outcome.finished
    assert (outcome.step, outcome.kept_step, outcome.best) == (32, 16, 0.7)


def test_a_diverging_loss_is_refused(tmp_path: Path) -> None:
    def infinite(model: nn.Module, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return model(pair[0]).sum() * float("inf"), {}

    with pytest.raises(ConfigurationError, match="diverged at step 0"):
        train(make_model(), infinite, batch, RECIPE, tmp_path)


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(make_model(), squares, batch, RECIPE, tmp_path)
    with pytest.raises(ConfigurationError, match="another recipe"):
        train(make_model(), squares, batch, replace(RECIPE, seed=1), tmp_path)


def test_the_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = make_average(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    expected = 0.0
    for update in range(1, 12):
        average.update_parameters(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay)
        assert average.module.weight.item() == pytest.approx(expected)
    assert not average.module.training
    assert not average.module.weight.requires_grad


def test_the_average_copies_buffers() -> None:
    model = nn.BatchNorm1d(2)
    average = make_average(model, decay=0.9)
    model(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    average.update_parameters(model)
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert average.module.num_batches_tracked == 1


def test_a_checkpoint_of_version_0_1_is_continued(tmp_path: Path) -> None:
    whole, resumed = make_model(), make_model()
    train(whole, squares, batch, RECIPE, tmp_path / "whole")
    train(make_model(), squares, batch, RECIPE, tmp_path / "cut", minutes=1, clock=clock_of(10))
    state = load_checkpoint(tmp_path / "cut")
    assert state is not None
    # Version 0.1 counted the updates; `AveragedModel` counts the weights, the first ones too.
    average = state["average"]
    updates = int(average.pop("n_averaged")) - 1
    weights = {name.removeprefix("module."): weight for name, weight in average.items()}
    state["average"] = {"model": weights, "updates": updates}
    assert updates == state["outcome"]["step"] == 6
    save_checkpoint(tmp_path / "cut", 6, state)
    train(resumed, squares, batch, RECIPE, tmp_path / "cut")
    for name, weight in load_file(tmp_path / "whole/weights.safetensors").items():
        assert torch.equal(weight, load_file(tmp_path / "cut/weights.safetensors")[name]), name


def test_a_large_checkpoint_is_cut_into_parts_and_the_older_one_goes(tmp_path: Path) -> None:
    state = {"weights": torch.arange(PART_BYTES // 3, dtype=torch.float32)}
    save_checkpoint(tmp_path, 3, {"weights": torch.zeros(1)})
    save_checkpoint(tmp_path, 12, state)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-00000012"]
    parts = sorted((tmp_path / "checkpoint-00000012").iterdir())
    assert len(parts) == 2
    assert all(part.stat().st_size < 16 * 2**20 for part in parts)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded["weights"], state["weights"])
    parts[-1].unlink()
    with pytest.raises(ConfigurationError, match="incomplete"):
        load_checkpoint(tmp_path)


def test_half_precision_weights_keep_integers(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"a": torch.rand(3), "n": torch.tensor(70_000)}, {"seed": 1}, half=True)
    stored = load_file(tmp_path / "w.safetensors")
    assert stored["a"].dtype == torch.float16
    assert stored["n"] == 70_000
    assert json.loads((tmp_path / "w.json").read_text()) == {"seed": 1}
