"""A real API on a real port, for tests, and a worker whose part the test plays."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from uuid import UUID

import uvicorn
from PIL import Image

from api.__main__ import KEEP_ALIVE
from api.app import create_app
from api.http.connections import Limits, bounded_http
from shared.database import Database, Finish
from shared.objects.storage import ObjectStore, content_key
from shared.queue import JobQueue
from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tuwen.jobs import GenerateResult, JobError, Kind, Progress, Status, StoredImage


@contextmanager
def serving(settings: Settings, port: int = 0, limits: Limits | None = None) -> Iterator[str]:
    """The base URL of an API that runs in a thread; `limits` of connections by default as in production."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            create_app(settings),
            log_level="warning",
            lifespan="on",
            http=bounded_http(limits),
            ws="none",
            timeout_keep_alive=KEEP_ALIVE,
            forwarded_allow_ips=[*settings.trusted_proxies],
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENT)
            assert not thread.is_alive(), "the API did not stop"


class FakeWorker:
    """Does to a job what a worker would, one step at a time."""

    def __init__(self, settings: Settings):
        self._database = Database(settings)
        self._queue = JobQueue(settings)
        self._store = ObjectStore.open(settings)
        self._epochs: dict[UUID, int] = {}

    def claim(self, id: UUID) -> None:
        """Claim the job and announce that it runs."""
        self._epochs[id] = self._database.jobs.claim([id], "cpu@test")[id].epoch
        self._queue.announce([(id, {"status": Status.RUNNING.value})])

    def tell(self, id: UUID, step: int, steps: int) -> None:
        """Announce the progress of a job."""
        self._queue.announce([(id, {"progress": Progress(step=step, steps=steps).model_dump()})])

    def succeed(self, id: UUID, image: bytes) -> str:
        """Finish a generate job; the key of its image."""
        key = content_key("results", image, ".png")
        self._store.put(key, image, "image/png")
        stored = StoredImage(key=key, sha256=sha256(image).hexdigest(), width=8, height=8, size=len(image))
        self._end(Finish(id, self._epochs[id], result=GenerateResult(image=stored, seed=1), result_key=key))
        return key

    def fail(self, id: UUID) -> None:
        """End the job with an error."""
        self._end(Finish(id, self._epochs[id], error=JobError(code="engine_error", detail="It did not work.")))

    def _end(self, finish: Finish) -> None:
        ended = self._database.jobs.finish([finish])
        self._queue.announce((id, {"status": status.value}) for id, status in ended.items())

    def await_next(self) -> UUID:
        """Wait for a generate job of any tenant that is queued; its id."""
        found: list[UUID] = []

        def look() -> bool:
            self._database.jobs.mark_all_due()
            found.extend(dispatch.id for dispatch in self._database.jobs.take_due(Kind.GENERATE, 1))
            return bool(found)

        eventually(look, "a job to be submitted")
        return found[0]

    def close(self) -> None:
        """Close the connections."""
        self._queue.close()
        self._database.close()


def png(colour: str = "white", size: tuple[int, int] = (8, 8)) -> bytes:
    """Return the bytes of a PNG of one colour."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()
