"""Batches on their way to the device: for a GPU they are made ahead, by other processes, in pinned memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")

AHEAD = 4
"""Batches that each process may be ahead by."""


class _Numbered(Dataset[Batch], Generic[Batch]):
    """Batches by their numbers, as a data set."""

    def __init__(self, batches: Callable[[int], Batch]):
        self.batches = batches

    def __getitem__(self, number: int) -> Batch:
        return self.batches(number)


def load(
    batches: Callable[[int], Batch],
    numbers: Iterable[int],
    device: torch.device,
    processes: int | None = None,
) -> Generator[Batch]:
    """The batches with these numbers, in their order, on `device`.

    Args:
        batches: makes a batch on the processor from its number alone, so it does not matter which process does it.
        processes: how many make batches; 0 makes them in this process. By default a GPU has as many as there are
            cores, and a processor has none, because they would compete with training for its cores.
    """
    if processes is None:
        processes = _count_processes(device)
    if processes == 0:
        for number in numbers:
            yield move(batches(number), device)
        return
    loader = DataLoader(
        _Numbered(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=processes,
        prefetch_factor=AHEAD,
        pin_memory=device.type == "cuda",
        # Forked processes share the pictures, and batches need not be picklable. They never touch the GPU.
        multiprocessing_context="fork",
    )
    for batch in loader:
        yield move(batch, device)


def _count_processes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = (os.cpu_count() or 1) // local
    return max(1, min(16, cores - 1))


def move(batch: Any, device: torch.device) -> Any:
    """The batch, a tensor or a (named) tuple of batches, on `device`; pinned memory may still be on its way."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    parts = (move(part, device) for part in batch)
    if hasattr(batch, "_fields"):
        return type(batch)(*parts)
    return tuple(parts)
