"""How the cores of this machine are shared out among the engine processes of a worker whose models run on them."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from shared.settings import Settings
from tuwen.errors import ConfigurationError

MOST_PROCESSES = 8
"""Most engine processes where the settings name no number: each holds torch and all models, some 300 MiB."""


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may keep busy: its affinity and, what torch overlooks, the container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, cpu_max.read_text().split())  # "max 100000" is no number: no quota
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def engine_processes(settings: Settings) -> int:
    """Engine processes of one worker: what the settings say, otherwise one per core for built-in models.

    Small models gain little from a second thread and much from a second process. Measured on two cores, images a
    second that the built-in models make and describe: 545 and 422 in one process of two threads, 792 and 580 in two
    of one. Other models bring gigabytes into each process: they get one, unless the settings ask for more.

    Raises:
        ConfigurationError: more than one on a GPU, which one process fills.
    """
    if settings.device != "cpu":
        if (settings.engines or 1) > 1:
            raise ConfigurationError("TUWEN_ENGINES is for the CPU: a GPU belongs to one engine process")
        return 1
    if settings.engines is not None:
        return settings.engines
    return min(usable_cores(), MOST_PROCESSES) if _all_builtin(settings) else 1


def engine_threads(settings: Settings, processes: int) -> int:
    """Threads that compute in each of `processes` engine processes; built-in models leave one core to the rest.

    A large model computes for seconds while queue, database and storage do nothing: it gets every core, except the
    last one where its warm-up shows that it makes no use of it (see workers.inference.threads). The built-in ones keep
    all of them busy, and OpenMP's threads wait for each other by spinning, so one that has lost its core costs the
    others theirs: measured on two cores, 95 pictures a second with two threads, 239 with one.
    """
    cores = usable_cores()
    return max(1, (cores - 1 if _all_builtin(settings) else cores) // processes)


def _all_builtin(settings: Settings) -> bool:
    """Whether every model is one of the built-in ones, of a few megabytes and milliseconds."""
    return all(spec.engine == "builtin" for kind in settings.kinds for spec in settings.models_for(kind))
