"""Checkpoints as people bring them: from the hub or a folder, safetensors only, none of their code.

    checkpoint = locate(spec, policy, report)
    pipeline = AutoPipelineForText2Image.from_pretrained(checkpoint.folder, …)

Everything that can be wrong with one is found here, before a library is asked to load it, and named in words that say
what to do: the libraries' own errors describe their internals.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from shared.model_specs import ModelSpec
from tuwen.errors import EngineStartFailed
from workers.inference.policy import Policy

Layout = Literal["pipeline", "model"]
"""A diffusers pipeline has a folder for each part and `model_index.json`; a transformers model has `config.json`."""

Report = Callable[[str, int, int], None]
"""Called with `(what is being done, bytes so far, bytes in all or 0)` while a model loads."""

T = TypeVar("T")

COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SUPPORTING = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configurations, vocabularies and chat templates; no Python."""
SAMPLE = 64 * 1024
"""Bytes read at each place of a large file for its fingerprint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that can be loaded: all its files are there and complete."""

    folder: Path
    revision: str
    """The hub's commit, or a fingerprint of the folder's content."""
    options: Mapping[str, str]
    size: int
    """Bytes of weights on disk."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`, or of a pipeline's `model_index.json`."""
        name = "model_index.json" if (self.folder / "model_index.json").exists() else "config.json"
        return _read_json(self.folder / name)


def locate(spec: ModelSpec, layout: Layout, policy: Policy, report: Report) -> Checkpoint:
    """Find the checkpoint, download it where it is not in the hub's cache yet, and check it.

    Raises:
        EngineStartFailed: it cannot be found, downloaded or loaded safely; the message says what to do.
    """
    folder = Path(spec.place).expanduser()
    local = folder.is_dir()
    if not local:
        if spec.is_folder:
            raise EngineStartFailed(f"there is no folder {folder}; a checkpoint from the hub is named owner/name")
        folder = _download(spec, layout, policy, report)
    weights = _check_weights(folder, layout, spec)
    revision = folder_fingerprint(folder, weights) if local else folder.name  # the cache's folder is named by commit
    return Checkpoint(folder, revision, spec.options, sum(file.stat().st_size for file in weights))


def run_with_progress(
    work: Callable[[], T], measure: Callable[[], int], tell: Callable[[int], None], interval: float = 1.0
) -> T:
    """Do `work` in another thread, call `tell` whenever `measure` has grown, and return what `work` returns.

    The libraries' progress bars count different things, some nothing; bytes grow for all of them.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, name="loading", daemon=True)
    thread.start()
    told = measure()
    while thread.is_alive():
        thread.join(interval)
        if (done := measure()) > told:
            told = done
            tell(done)
    if failure:
        raise failure[0]
    return outcome[0]


# ── from the hub ──────────────────────────────────────────────────────────────────────────────────


def _download(spec: ModelSpec, layout: Layout, policy: Policy, report: Report) -> Path:
    if not policy.unpinned and not COMMIT.fullmatch(spec.revision or ""):
        raise EngineStartFailed(
            f"{spec.place} needs a pinned revision, because what a branch or tag names may change: "
            f"{spec.engine}:{spec.place}@COMMIT with the 40 digits from the hub's page 'Files'; "
            "for development TUWEN_UNPINNED=true allows any"
        )
    blobs = Path(HF_HUB_CACHE) / f"models--{spec.place.replace('/', '--')}" / "blobs"
    try:
        return run_with_progress(
            lambda: _fetch(spec, layout),
            lambda: _size(blobs),
            lambda done: report(f"downloading {spec.place}", done, 0),
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EngineStartFailed(_explain_download_failure(spec, error)) from error


def _explain_download_failure(spec: ModelSpec, error: BaseException) -> str:
    """Say why, and what to do. Diffusers hides the hub's errors behind others."""
    match _find_hub_error(error):
        case GatedRepoError():
            return f"{spec.place} is gated: accept its terms on the hub and set HF_TOKEN"
        case RepositoryNotFoundError() | HFValidationError():
            what = f"{spec.place} is neither a folder here nor a checkpoint that the hub shows us"
            return f"{what}: check the name, and set HF_TOKEN if it is private"
        case RevisionNotFoundError():
            return f"{spec.place} has no revision {spec.revision}"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            fetch = f"hf download {spec.place}" + (f" --revision {spec.revision}" if spec.revision else "")
            return (
                f"{spec.place} is not in this machine's cache, and the hub cannot be reached: run `{fetch}` where it "
                "can, or name a folder"
            )
    return f"{spec.place} cannot be downloaded: {_first_line(error)}"


def _find_hub_error(error: BaseException) -> BaseException:
    """The error of the hub's own library behind this one, if there is one."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return behind
        behind = behind.__cause__ or behind.__context__
    return error


def _fetch(spec: ModelSpec, layout: Layout) -> Path:
    if layout == "pipeline":
        from diffusers import DiffusionPipeline  # seconds, and of no use to the other engines

        # It knows which of a repository's many files its pipeline needs.
        folder = DiffusionPipeline.download(
            spec.place, revision=spec.revision, variant=spec.options.get("variant"), use_safetensors=True
        )
        return Path(folder)
    return Path(snapshot_download(spec.place, revision=spec.revision, allow_patterns=[*SUPPORTING, "*.safetensors"]))


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder)) if folder.is_dir() else 0


# ── what is in the folder ─────────────────────────────────────────────────────────────────────────


def _check_weights(folder: Path, layout: Layout, spec: ModelSpec) -> list[Path]:
    """Check that the files with the weights are complete, and return them."""
    wanted, other = ("model_index.json", "config.json")[:: 1 if layout == "pipeline" else -1]
    if not (folder / wanted).is_file():
        hint = ""
        if (folder / other).is_file():
            hint = (
                "; it is a diffusers pipeline, for TUWEN_GENERATE=diffusers:…"
                if layout == "model"
                else f"; it is a transformers model ({_architecture(folder)}), "
                "for TUWEN_DESCRIBE=transformers:…, TUWEN_RECOGNIZE=clip:… or TUWEN_MATCH=clip:…"
            )
        what = "diffusers pipeline" if layout == "pipeline" else "transformers checkpoint"
        raise EngineStartFailed(f"{spec.place} is no {what}: there is no {wanted}{hint}")
    config = _read_json(folder / wanted)
    if layout == "pipeline" and isinstance(config.get("_class_name"), list):
        raise EngineStartFailed(f"{spec.place} brings Python code of its own, and Tuwen runs none")
    folders = [folder] if layout == "model" else [folder / part for part in _parts(config)]
    return [file for each in folders for file in _check_part_weights(each, optional=layout == "pipeline")]


def _architecture(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    return str((config.get("architectures") or [config.get("model_type", "unknown")])[0])


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Names of a pipeline's parts that this checkpoint has."""
    return [
        name for name, value in index.items() if not name.startswith("_") and isinstance(value, list) and all(value)
    ]


def _check_part_weights(folder: Path, optional: bool) -> list[Path]:
    """Check one model's safetensors files; a part of a pipeline such as its scheduler has none."""
    if optional and not folder.is_dir():
        raise EngineStartFailed(f"{folder.parent} is not complete: its model_index.json names {folder.name}")
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(_read_json(index).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise EngineStartFailed(f"{folder} is not complete: {name} is missing; download it again")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
        if pickled:
            raise EngineStartFailed(
                f"{folder} has its weights as {pickled[0]}, a pickle, which can run code when it is loaded; "
                "only safetensors are loaded: take a revision that has them, or load the model once where you trust it "
                "and save it with `save_pretrained`"
            )
        if not optional:
            raise EngineStartFailed(f"{folder} has no weights: there is no *.safetensors; download it again")
        if (folder / "config.json").is_file():
            raise EngineStartFailed(f"{folder} has a config.json and no *.safetensors; download it again")
    for file in files:
        _check_whole(file)
    return files


def _check_whole(file: Path) -> None:
    """Check a file's length by its header, the only part that is read."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise EngineStartFailed(f"{file} is broken ({_first_line(error)}); download it again") from error


def folder_fingerprint(folder: Path, weights: list[Path]) -> str:
    """A name that changes with the configurations and with samples of the weights: reading all takes minutes."""
    digest = sha256()
    small = sorted(file for file in folder.rglob("*.json") if file.is_file())
    for file in small:
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    for file in weights:
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            for share in range(16):
                stream.seek(file.stat().st_size * share // 16)
                digest.update(stream.read(SAMPLE))
    return f"{folder.name}-{digest.hexdigest()[:12]}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineStartFailed(f"{file} is broken ({_first_line(error)}); download it again") from error
    if not isinstance(content, dict):
        raise EngineStartFailed(f"{file} is broken (no JSON object); download it again")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
