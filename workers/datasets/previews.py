"""Small pictures of a data set's images, for the people who review it: made when they are asked for, and kept."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import suppress
from io import BytesIO
from uuid import UUID

from redis.exceptions import RedisError

from shared.database import Database
from shared.intake.images import decode
from shared.objects.datasets import preview_key, read_plan
from shared.objects.storage import ObjectStore
from shared.queue import PREVIEWS_LIST, connect
from shared.settings import Settings
from tuwen.errors import NotFound, TuwenError
from workers.datasets.access import open_allowed
from workers.datasets.sources import SourceImage

log = logging.getLogger(__name__)

SIDE = 512
"""Pixels of the longer side, at most."""
QUALITY = 85
POLL = 1.0


class Previews:
    """A thread that makes the pictures which somebody waits for, the latest request first."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore):
        self._settings = settings
        self._database = database
        self._store = store
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="previews", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the request that it works on."""
        self._closing.set()

    def _run(self) -> None:
        with connect(self._settings, decode=False) as client:
            while not self._closing.is_set():
                try:
                    found = client.blpop([PREVIEWS_LIST], timeout=POLL)
                except (RedisError, OSError):
                    self._closing.wait(POLL)
                    continue
                if found:
                    self._serve(found[1])

    def _serve(self, request: bytes) -> None:
        try:
            dataset_id, images = json.loads(request)
            self.make(UUID(dataset_id), [int(image) for image in images])
        except (ValueError, TypeError, AttributeError):
            log.warning("dropped a malformed request for previews")  # anybody who reaches Redis can publish
        except TuwenError as error:
            log.warning("previews could not be made: %s", error)
        except Exception:
            log.exception("a preview failed unexpectedly")

    def make(self, dataset_id: UUID, images: list[int]) -> None:
        """Store the previews of these images; an empty file for one that cannot be read."""
        request = self._database.datasets.request(dataset_id)
        with open_allowed(request, self._settings, self._database.dataset_places.key_roots(dataset_id)) as source:
            for image in images:
                key = preview_key(dataset_id, image)
                with suppress(NotFound):
                    self._store.head(key)
                    continue
                shard, first = self._database.shards.locate(dataset_id, image)
                planned = read_plan(self._store, shard.plan_key)[image - first]
                data = b""
                if planned.image is not None:
                    with suppress(TuwenError):
                        data = self._make_preview(source.read(SourceImage.from_fields(planned.image)))
                self._store.put(key, data, "image/jpeg")

    def _make_preview(self, data: bytes) -> bytes:
        image = decode(data, self._settings)
        image.thumbnail((SIDE, SIDE))
        file = BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()
