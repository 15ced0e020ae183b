"""Data parallelism: one training run by several processes that torchrun starts, one for each GPU.

    torchrun --nproc-per-node 8 -m workers.lab.training recognizer --out runs/recognizer

Every process holds the whole model and computes gradients of its own parts of a step's batch; their mean is exchanged
while it is being computed (`DistributedDataParallel`: NCCL between GPUs, gloo between processors). Only the first
process validates and writes files. Runs that span hosts need the run's folder on a file system that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long processes wait for the first one, which validates alone."""


@contextmanager
def join(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, and yields this one's device. Changes nothing without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def will_be_first() -> bool:
    """Whether this process will be the first one; known before the processes have joined."""
    return os.environ.get("RANK", "0") == "0"


def wait() -> None:
    """Waits until all processes have come to this point."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block alone, then all others do: for files that all read and the first one makes."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def broadcast(value: T) -> T:
    """The value of the first process, in all of them."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in each of them."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * size()
    dist.all_gather_object(values, value)
    return cast("list[T]", values)


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over all processes."""
    if dist.is_initialized() and tensors:
        # One message for all, because they are many and small, in double precision, which holds counters too.
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat / size(), [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, parts, strict=True):
            tensor.copy_(mean.view_as(tensor))


def parallelise(module: nn.Module, device: torch.device) -> nn.Module:
    """`module`, whose gradients are the means over all processes from now on; a single process gets it unchanged."""
    if not dist.is_initialized():
        return module
    # A batch without relations leaves the head of relations without a gradient: not all parameters are always used.
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)
