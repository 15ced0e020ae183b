"""Files of a training run: resumable checkpoints, and weights with their facts beside them.

Everything is written to a temporary name first and renamed, so a process killed at any moment leaves
either the old file or the new one, never half of one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from tuwen.errors import ConfigurationError

PART_BYTES = 15 * 2**20
"""A checkpoint is cut into parts below 16 MiB, the most that some places can carry as one file."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` durably; a reader sees either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_checkpoint(run: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes `state` as `run/checkpoint-<step>/`, then removes the older ones.

    `state` may hold tensors, numbers, strings and containers of them: it is read back without running any code.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
    target = _folder(run, step)
    # Same step, same state: a folder left by an earlier slice that was killed right after writing it.
    shutil.rmtree(target, ignore_errors=True)
    unfinished = run / f".checkpoint.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, part in enumerate(parts):
        write_atomically(unfinished / f"part-{number:02d}-of-{len(parts):02d}", part)
    unfinished.rename(target)
    for older in _folders(run):
        if older != target:
            shutil.rmtree(older)


def load_checkpoint(run: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The state of the latest checkpoint in `run`, or None when there is none.

    Raises:
        ConfigurationError: parts of the checkpoint are missing.
    """
    folders = _folders(run)
    if not folders:
        return None
    parts = sorted(folders[-1].iterdir())
    if not parts or len(parts) != int(parts[0].name.rpartition("-")[2]):
        raise ConfigurationError(f"The checkpoint {folders[-1]} is incomplete.")
    content = b"".join(part.read_bytes() for part in parts)
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


def _folder(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:08d}"


def _folders(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint-*"))


def save_weights(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any], *, half: bool = False) -> None:
    """Writes `weights` as safetensors at `path` and `facts` as JSON beside it.

    Args:
        half: store floating point weights as float16, which halves the file.
    """
    stored = {}
    for name, tensor in weights.items():
        if half and tensor.is_floating_point():
            tensor = tensor.half()
        stored[name] = tensor.detach().cpu().contiguous()
    write_atomically(path, serialise(stored))
    text = json.dumps(dict(facts), indent=2, ensure_ascii=False, sort_keys=True)
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())
