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
    batches: Callable[[int], Batch], numbers: Iterable[int], device: torch.device, processes: int | None = None
) -> Generator[Batch]:
    """The batches with these numbers, in their order, on `device`.

    Args:
        batches: makes a batch on the processor from its number alone, so it does not matter which process does it.
        processes: that make batches; 0 makes them here. By default as many as there are cores for a GPU, and none for
            a processor, which would only compete with itself.
    """
    if processes is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        processes = max(1, min(16, (os.cpu_count() or 1) // local - 1)) if device.type == "cuda" else 0
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
        # Forked, the processes share the pictures, and batches need not be picklable. They never touch the GPU.
        multiprocessing_context="fork",
    )
    for batch in loader:
        yield move(batch, device)


def move(batch: Any, device: torch.device) -> Any:
    """The batch, a tensor or a tuple of such, named or not, on `device`; pinned memory is not waited for."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    parts = (move(part, device) for part in batch)
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
