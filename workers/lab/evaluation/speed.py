"""How long one image and one caption take, as a user waits for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tuwen.engine import Pixels
from workers.lab.evaluation.contestants import Contestants

PROMPT = "一只黑色的猫在草地上跳跃"


def figures(picture: Pixels, contestants: Contestants, repeats: int) -> dict[str, Any]:
    """Milliseconds of one call each, with one thread and with as many as there are cores; sets threads back after."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    try:
        return {
            "cores": cores,
            "repeats": repeats,
            "threads": {str(threads): _with(threads, picture, contestants, repeats) for threads in sorted({1, cores})},
        }
    finally:
        torch.set_num_threads(before)


def _with(threads: int, picture: Pixels, contestants: Contestants, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    calls: dict[str, Callable[[], object]] = {
        "image": lambda: contestants.draw([PROMPT], [0]),
        "caption": lambda: contestants.describe([picture], "zh", "detailed"),
        "recognition": lambda: contestants.recognize([picture]),
        "match": lambda: contestants.match([picture], [PROMPT]),
    }
    return {name: _time(call, repeats) for name, call in calls.items()}


def _time(call: Callable[[], object], repeats: int) -> dict[str, float]:
    call()  # what the first call sets up is no part of the time
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return {"median_ms": float(np.median(times)), "p90_ms": float(np.quantile(times, 0.9))}
