"""Captions that exports in place wrote beside the images of a source: they stay the model's, not the author's.

An export in place notes in `.tuwen/written.jsonl` what it is going to write, before it does: the sidecar, from that
folder on, and the SHA-256 of its bytes. A sidecar that somebody has edited since is not what was noted, and so theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, BinaryIO

from tuwen.errors import NotFound, PathForbidden, StorageUnavailable
from workers.datasets.sources.places import Place
from workers.datasets.sources.seen import Seen

FOLDER = ".tuwen"
"""Where an export in place keeps its records; hidden, so that no run lists it."""
WRITTEN = "written.jsonl"
RECORDS = "annotations.jsonl"


class OwnWords:
    """What models have written beside images. `close` it at the end."""

    def __init__(self) -> None:
        self._seen = Seen()

    def load(self, place: Place, folder: str = "", below: str = "") -> None:
        """Read what exports into a folder of the place noted; nothing where there was none.

        Args:
            below: the part of the noted paths that leads to where sidecars are named from, for a folder above.
        """
        records = f"{folder}/{FOLDER}" if folder else FOLDER
        for name, read in ((WRITTEN, self.add_noted), (RECORDS, self.add_recorded)):
            try:
                file = place.open(f"{records}/{name}")
            except (NotFound, PathForbidden, StorageUnavailable):
                continue
            with file:
                read(file, folder, below)

    def add_noted(self, lines: BinaryIO, folder: str = "", below: str = "") -> None:
        """Add the lines of a `written.jsonl`."""
        for noted in _objects(lines):
            if isinstance(noted.get("sidecar"), str) and isinstance(noted.get("sha256"), str):
                self._add(noted["sidecar"], noted["sha256"], folder, below)

    def add_recorded(self, lines: BinaryIO, folder: str = "", below: str = "") -> None:
        """Add the lines of an `annotations.jsonl`, from which earlier releases did not note anything apart."""
        for record in _objects(lines):
            if record.get("author") == "model" and isinstance(record.get("text"), str):
                text = one_line(record["text"]).encode(errors="surrogatepass")
                self._add(sidecar_name(str(record.get("name"))), sha256(text).hexdigest(), folder, below)

    def has(self, sidecar: str, text: bytes) -> bool:
        """Whether a model wrote this text into this sidecar."""
        return _key(sidecar, sha256(text).hexdigest()) in self._seen

    def note(self, sidecar: str, text: bytes) -> bytes | None:
        """The line to note before a model's text is written; None where it is noted already."""
        digest = sha256(text).hexdigest()
        if not self._seen.add(_key(sidecar, digest)):
            return None
        return json.dumps({"sidecar": sidecar, "sha256": digest}).encode() + b"\n"

    def close(self) -> None:
        """Delete the temporary index."""
        self._seen.close()

    def _add(self, sidecar: str, digest: str, folder: str, below: str) -> None:
        if sidecar.startswith(below):
            sidecar = sidecar.removeprefix(below)
            self._seen.add(_key(f"{folder}/{sidecar}" if folder else sidecar, digest))


def sidecar_name(name: str) -> str:
    """The name of an image's sidecar: its own with the suffix .txt."""
    return f"{name.rpartition('.')[0] or name}.txt"


def one_line(text: str) -> str:
    """Join the lines of a text, because sd-scripts read only the first line by default."""
    return " ".join(text.split())


def _objects(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    """The objects of JSON lines; a line that was cut short when an export was killed is left out."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _key(sidecar: str, digest: str) -> str:
    return f"{sidecar}\0{digest}"
