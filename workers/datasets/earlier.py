"""Results of earlier runs over the same source, so that a source which has grown costs only what is new.

An image is known by its content: by its SHA-256, with the same questions asked of it. To avoid
reading every image again, one of the same name, size and version (`SourceImage.version`) counts as the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Self
from uuid import UUID

from pydantic import TypeAdapter

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.database.shards import Shard
from shared.objects.datasets import Line, read_plan, read_results
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.annotations import Annotation, Review, standing_reviews
from tuwen.errors import NotFound, TuwenError
from workers.datasets.sources import SourceImage
from workers.datasets.sources.seen import temporary_database

FOUND_OUT = ("sha256", "size", "width", "height", "existing_score", "captions", "others", "recognition", "attempts")
"""Fields of an annotation that are the image's own, wherever it lies now."""

_OPEN = 8
_REVIEWS: TypeAdapter[tuple[Review, ...]] = TypeAdapter(tuple[Review, ...])


class EarlierResults:
    """An index on disk over the results of earlier runs."""

    def __init__(self, store: ObjectStore, models: Iterable[str]):
        """`models` are those that answer today: what other models said does not count."""
        self._store = store
        self._models = frozenset(models)
        self._results: OrderedDict[str, list[Line]] = OrderedDict()
        self._index = temporary_database()
        self._index.execute(
            "CREATE TABLE images"
            " (name TEXT, version TEXT, size INTEGER, sha256 TEXT, key TEXT, line INTEGER, reviews BLOB)"
        )
        for column in ("name", "size", "sha256"):
            self._index.execute(f"CREATE INDEX by_{column} ON images ({column})")

    @classmethod
    def open_for(cls, settings: Settings, database: Database, store: ObjectStore, claim: DatasetClaim) -> Self | None:
        """Open an index over the earlier runs of the claim's source; None when there is none."""
        runs = database.datasets.earlier_runs(claim)
        if not runs:
            return None
        earlier = cls(store, (settings.model_for(kind) for kind in claim.request.kinds))
        for run in runs:
            earlier._add(database, run)
        return earlier

    def annotation(self, image: SourceImage, read: Callable[[SourceImage], bytes]) -> dict[str, Any] | None:
        """Return what is known of the image, as fields of its `Annotation`; None when nothing is.

        Reads the image only where one of the same size is known under another name or version.
        """
        row = None
        if image.version is not None:
            row = self._find_one("name = ? AND version = ? AND size = ?", image.name, image.version, image.size)
        if row is None and (image.size is None or self._find_one("size = ?", image.size)):
            try:
                row = self._find_one("sha256 = ?", sha256(read(image)).hexdigest())
            except TuwenError:
                return None  # the worker will meet the same error, and report it
        return None if row is None else self._read(*row)

    def close(self) -> None:
        """Delete the temporary index."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, database: Database, run: UUID) -> None:
        first = 0
        for shard in database.shards.all(run):
            self._add_shard(shard, database.datasets.reviews(run, range(first, first + shard.images)), first)
            first += shard.images

    def _add_shard(self, shard: Shard, reviews: Mapping[int, list[Review]], first: int) -> None:
        if shard.results_key is None:
            return
        try:
            plan = read_plan(self._store, shard.plan_key)
            lines = read_results(self._store, shard.results_key, len(plan))
        except NotFound:  # the run is being retried: these results have just been replaced
            return
        for number, (planned, line) in enumerate(zip(plan, lines, strict=True)):
            if planned.image is None or not isinstance(line, bytes):
                continue
            known = Annotation.model_validate_json(line)
            if known.error is None and known.sha256 is not None and self._is_complete(known):
                said = standing_reviews([*reviews.get(first + number, ()), *known.reviews])
                version = planned.image.get("version")
                row = (
                    known.name,
                    version,
                    known.size,
                    known.sha256,
                    shard.results_key,
                    number,
                    _REVIEWS.dump_json(said),
                )
                self._index.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _is_complete(self, known: Annotation) -> bool:
        """Whether today's models were asked all that is asked now: one that a filter dropped before was not."""
        made = [each.provenance for each in (*known.captions, known.recognition) if each is not None]
        made += [caption.scored_by for caption in known.captions if caption.scored_by is not None]
        return bool(made or known.existing_score is not None) and {each.model for each in made} <= self._models

    def _find_one(self, where: str, *values: object) -> tuple[str, int, bytes] | None:
        found: tuple[str, int, bytes] | None = self._index.execute(
            f"SELECT key, line, reviews FROM images WHERE {where} LIMIT 1",  # noqa: S608 (constants)
            values,
        ).fetchone()
        return found

    def _read(self, key: str, line: int, reviews: bytes) -> dict[str, Any] | None:
        """Read the fields from the results: the index holds only their place."""
        if key not in self._results:
            try:
                self._results[key] = read_results(self._store, key, 0)
            except NotFound:
                return None
            if len(self._results) > _OPEN:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        text = self._results[key][line]
        if not isinstance(text, bytes):
            return None
        known = Annotation.model_validate_json(text)
        found = {field: getattr(known, field) for field in FOUND_OUT}
        return found | {"reviews": _REVIEWS.validate_json(reviews)}
