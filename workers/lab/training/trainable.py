"""A model that can be trained, described once: `Trainable`, whatever the model is and whatever it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from workers.lab.training import loop
from workers.lab.training.loop import Loss, Outcome, Validation

Data = TypeVar("Data")
Seen = TypeVar("Seen", contravariant=True)


class Train(Protocol[Seen]):
    """Trains a model on `data`, keeps what is best on `validation`, and leaves its weights in the folder `run`."""

    def __call__(
        self,
        data: Seen,
        validation: Seen,
        run: Path,
        recipe: Any,
        *,
        minutes: float | None,
        device: str,
    ) -> Outcome: ...


def _leave_alone(_model: Any, _data: Any) -> None:
    """Most models have nothing to calibrate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable(Generic[Data]):
    """One model and one kind of data: how the model is built, trained, calibrated and measured."""

    build: Callable[[Any], nn.Module]
    """The model with the weights that its recipe starts from."""
    train: Train[Data]
    report: Callable[[Any, Mapping[str, Data]], dict[str, float]]
    """All published figures of a trained model, `<split>/<figure>`, from data that it has never seen."""
    calibrate: Callable[[Any, Data], None] = _leave_alone
    """Sets thresholds and scales of a trained model by data that it was not trained on."""


def teach(
    *,
    build: Callable[[Any], nn.Module],
    loss: Loss[Any],
    batches: Callable[[Data, Any], Callable[[int], Any]],
    figures: Callable[[Any, Data], Mapping[str, float]],
    metric: str,
    higher: bool = True,
) -> Train[Data]:
    """How a model is trained that one run of the training loop teaches.

    Args:
        batches: from data and recipe to the function that makes the batch with a number.
        figures: what is measured in each validation.
        metric: the figure that decides which weights are kept.
        higher: whether more of `metric` is better.
    """

    def train(
        data: Data,
        validation: Data,
        run: Path,
        recipe: Any,
        *,
        minutes: float | None = None,
        device: str = "cpu",
    ) -> Outcome:
        def measure(model: nn.Module) -> Mapping[str, float]:
            return figures(model, validation)

        return loop.train(
            build(recipe),
            loss,
            batches(data, recipe),
            recipe,
            run,
            validation=Validation(measure, metric, higher),
            minutes=minutes,
            device=device,
        )

    return train
