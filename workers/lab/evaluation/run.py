"""All measurements, one section after the other, into one report."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuwen.jobs import RecognizeResult
from tuwen.version import __version__
from workers.lab.evaluation import (
    by_hand,
    description,
    distances,
    generation,
    judging,
    outside,
    pairs,
    recognition,
    speed,
)
from workers.lab.evaluation.contestants import Contestants
from workers.lab.evaluation.goals import goals
from workers.lab.evaluation.judge import WEIGHTS, Judge
from workers.lab.evaluation.prompts import COLUMNS, Column
from workers.lab.training.data import Pictures, draw_pictures

log = logging.getLogger("workers.lab.evaluation")

DATA_SEED = 9001
"""Seed of the test pictures; no model was trained, chosen or calibrated on pictures with it."""
SECTIONS = (
    "judge",
    "generation",
    "by_hand",
    "recognition",
    "description",
    "pope",
    "pairs",
    "outside",
    "speed",
    "distances",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    prompts: int = 120
    """Number of prompts of each tag, seen and unseen each; every one is drawn with four seeds."""
    pictures: int = 1000
    """Number of pictures of each test split."""
    strangers: int = 150
    """Number of pictures of each kind from outside the drawn world."""
    repeats: int = 30
    """Number of repetitions of each timed call."""
    distances: int = 0
    """Pictures for Fréchet and kernel distance, which say little on fewer than 10,000; 0 leaves them out."""


QUICK = Sizes(prompts=12, pictures=100, strangers=10, repeats=5)


@dataclass
class Evaluation:
    """What one evaluation has measured, and the pictures that its page shows."""

    sizes: Sizes
    device: str = "cpu"
    cache: Path = Path("runs/pictures")
    report: dict[str, Any] = field(default_factory=dict)
    gallery: generation.Gallery = field(default_factory=dict)

    @cached_property
    def contestants(self) -> Contestants:
        """The engines under test, loaded when they are first needed."""
        return Contestants.load(self.device)

    @cached_property
    def judge(self) -> Judge:
        """The judge, loaded when it is first needed."""
        return Judge.load(device=self.device)

    @cached_property
    def data(self) -> dict[Column, Pictures]:
        """Pictures of both test splits."""
        return {column: self.pictures(column, self.sizes.pictures) for column in COLUMNS}

    def pictures(self, column: Column, count: int) -> Pictures:
        """The first `count` pictures of a test split."""
        # A few are drawn as fast as they are read.
        return draw_pictures(column, count, seed=DATA_SEED, cache=self.cache if count > 500 else None)

    @cached_property
    def captions(self) -> dict[Column, description.Captions]:
        """What the describer says of all pictures."""
        return {c: description.describe(list(data.pixels), self.contestants) for c, data in self.data.items()}

    @cached_property
    def recognized(self) -> dict[Column, list[RecognizeResult]]:
        """What the recogniser finds in all pictures."""
        return {c: self.contestants.recognize(list(data.pixels)) for c, data in self.data.items()}

    def run(self, sections: Iterable[str], tell: Callable[[str], None]) -> None:
        """Measure the sections in turn; `tell` is told which comes next."""
        self.report |= self._about()
        measure: dict[str, Callable[[], dict[str, Any]]] = {
            "judge": lambda: judging.figures(self.sizes.prompts, self.judge),
            "generation": self._generation,
            "by_hand": lambda: by_hand.figures(self.contestants.generator, self.judge),
            "recognition": self._recognition,
            "description": self._description,
            "pope": self._pope,
            "pairs": lambda: {c: pairs.figures(data, c, self.contestants) for c, data in self.data.items()},
            "outside": lambda: outside.figures(self.data["seen"], self.sizes.strangers, self.contestants),
            "speed": lambda: speed.figures(self.data["seen"].pixels[0], self.contestants, self.sizes.repeats),
            "distances": self._distances,
        }
        for name in sections:
            tell(name)
            start = time.monotonic()
            self.report[name] = measure[name]()
            log.info("%s: %.0f s", name, time.monotonic() - start)
        self.report["goals"] = [{**asdict(goal), "verdict": goal.verdict} for goal in goals(self.report)]

    def _about(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.judge.parameters())
        card = json.loads(WEIGHTS.with_suffix(".json").read_text())
        return {
            "about": {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "version": __version__,
                "protocol": "GenEval protocol, closed domain",
                "quick": self.sizes == QUICK,
                "sizes": asdict(self.sizes),
                "device": self.device,
                "cores": len(os.sched_getaffinity(0)),
                "machine": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "seeds": list(generation.SEEDS),
                "data_seed": DATA_SEED,
                "models": self.contestants.revisions(),
                "judge": {name: card[name] for name in ("command", "seed", "metrics")} | {"parameters": parameters},
            }
        }

    def _generation(self) -> dict[str, Any]:
        self.gallery = generation.draw_all(self.sizes.prompts, self.contestants, self.judge)
        return generation.figures(self.gallery)

    def _recognition(self) -> dict[str, Any]:
        return {c: recognition.figures(data.scenes, self.recognized[c]) for c, data in self.data.items()}

    def _description(self) -> dict[str, Any]:
        return {c: description.figures(data.scenes, self.captions[c]) for c, data in self.data.items()}

    def _pope(self) -> dict[str, Any]:
        return {c: description.pope(data, self.captions[c], self.contestants) for c, data in self.data.items()}

    def _distances(self) -> dict[str, Any]:
        return {c: distances.figures(self.pictures(c, self.sizes.distances), self.contestants) for c in COLUMNS}


def as_json(report: dict[str, Any]) -> str:
    """Figures to four places, so that two reports can be compared by eye."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if isinstance(value, float | np.floating):
            return round(float(value), 4)
        return int(value) if isinstance(value, np.integer) else value

    return json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n"
