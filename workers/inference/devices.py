"""One worker for one GPU, and which GPUs there are.

    python -m workers devices        one name a line: cuda:0, cuda:1…

Run this in a process of its own: a process that asks torch for its GPUs holds memory on them until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import IO

from tuwen.errors import EngineStartFailed


def visible_devices() -> list[str]:
    """List the GPUs that this process can see, by the names that `--device` takes."""
    torch = import_module("torch")
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def visible_device(device: str, inherited: str | None) -> tuple[str, str]:
    """Return CUDA_VISIBLE_DEVICES for the process, and the device's name inside it.

    `inherited` is the variable's present value: `cuda:1` is then the second of the devices it names, as it is
    for torch. The process sees one GPU only, so that no model can land on a neighbour's by mistake.

    Raises:
        EngineStartFailed: no such device.
    """
    if device == "cpu":
        return "", "cpu"
    family, _, number = device.partition(":")
    if family != "cuda" or not (number or "0").isdecimal():
        raise EngineStartFailed(f"unknown device {device!r}: 'cpu', 'cuda' and 'cuda:N' are allowed")
    index = int(number or 0)
    if inherited is None:
        return str(index), "cuda:0"
    named = [name.strip() for name in inherited.split(",") if name.strip()]
    if index >= len(named):
        raise EngineStartFailed(f"no device {device}: CUDA_VISIBLE_DEVICES={inherited!r} leaves {len(named)} visible")
    return named[index], "cuda:0"


def hold_gpu(device: str) -> IO[bytes] | None:
    """Take the GPU for this process until it ends; keep what is returned. Call it after CUDA_VISIBLE_DEVICES is set.

    Where torch sees no GPU there is nothing to hold, and the models will report what is missing.

    Raises:
        EngineStartFailed: another worker of this host has it.
    """
    torch = import_module("torch")  # by name, so that importing this module does not import torch
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(device)
    return hold(f"{properties.uuid}", f"the GPU {properties.name}")


def hold(identity: str, called: str, folder: Path | None = None) -> IO[bytes]:
    """Lock what `identity` stands for on this host; the kernel releases it when the process ends, however it ends.

    Raises:
        EngineStartFailed: another process has it.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"tuwen-{identity}.lock"
    # Another user's worker may have made it: everybody may open it, and what is in it is only words.
    handle = os.open(path, os.O_RDWR | (0 if path.exists() else os.O_CREAT), 0o666)
    with contextlib.suppress(PermissionError):  # another user owns it, whose worker has done this
        path.chmod(0o666)
    file = os.fdopen(handle, "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = file.read(20).decode(errors="replace") or "unknown"
        file.close()
        raise EngineStartFailed(
            f"{called} belongs to another worker on this host (its engine is process {holder}): stop that one, "
            "or name another GPU with --device"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    return file
