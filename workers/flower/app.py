"""Flower, the monitoring page, on the same Celery application: it shows every job and changes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from http import HTTPStatus
from typing import Any

from flower.app import Flower
from flower.urls import settings as tornado_settings
from flower.views.monitor import Metrics
from kombu.utils.url import maybe_sanitize_url
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import PeriodicCallback
from tornado.options import options
from tornado.web import ErrorHandler, OutputTransform

from shared.database import Database
from shared.local_hosts import host_name, local_names
from shared.queue import celery_app
from shared.redis_place import RedisPlace
from shared.settings import Settings, is_loopback
from tuwen.errors import ConfigurationError
from workers.flower.intake import EventIntake
from workers.flower.missed_events import MissedEvents
from workers.flower.state_file import StateFile

log = logging.getLogger(__name__)

MOST_TASKS = 20_000
"""Tasks kept in memory, about 6 kB each; the oldest go first."""

SAVE_INTERVAL = 300.0
"""Seconds between savings of its state, which survives a restart; each blocks it for up to a second."""


def run_flower(settings: Settings) -> int:
    """Serve the page until SIGTERM or SIGINT. Returns the exit status.

    Raises:
        ConfigurationError: no password outside loopback, a port that is taken, a folder that cannot be written.
    """
    _set_options(settings)
    file = _state_file(settings)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # from where Flower takes it
    database = Database(settings, pool_size=1)
    flower: Flower = _LocalFlower(settings)
    flower.add_handlers(r".*", [(r"/metrics", _PrivateMetrics)])
    # Otherwise it takes them from the connection, where it does not recognise our transport as Redis.
    # Of several sentinels its page of queues knows one.
    broker_url = RedisPlace(settings.redis_url).broker_url.partition(";")[0]
    flower.broker_uri_with_password = broker_url
    flower.broker_uri = maybe_sanitize_url(broker_url)
    missed = MissedEvents(flower, database, settings.housekeeping_interval)
    _listen(flower, settings)
    log.info("Flower listens on %s port %d", settings.flower_host, settings.flower_port)
    state = _restore(flower, file)
    saving = PeriodicCallback(lambda: file.save(state), SAVE_INTERVAL * 1000)
    intake = EventIntake(loop, state.event)
    flower.events.on_event = intake.receive  # type: ignore[method-assign]

    def stop() -> None:
        missed.stop()
        saving.stop()
        file.save(state)
        flower.stop()

    intake.stop_on_signals(stop)
    saving.start()
    missed.start()
    try:
        flower.start()
    finally:
        missed.stop()
        database.close()
    return 0


def _restore(flower: Flower, file: StateFile) -> Any:
    """Give Flower the state that was saved, if there is one. Returns the state that it has now."""
    if state := file.load():
        # It would keep the limit it was saved with.
        state.max_tasks_in_memory = state.tasks.limit = MOST_TASKS
        state.tasks.update()
        flower.events.state = state
    return flower.events.state


def _set_options(settings: Settings) -> None:
    """Set Flower's options in the one global object that it reads them from."""
    # Refuses whatever would act on workers or tasks: shutdown, pool sizes, rate limits, revoke, apply.
    options.read_only = True
    # Our workers send events by default, so Flower need not ask them to.
    options.enable_events = False
    options.address = settings.flower_host
    options.port = settings.flower_port
    options.max_tasks = MOST_TASKS
    options.purge_offline_workers = 86_400
    options.tasks_columns = "name,uuid,state,received,runtime,worker,exception"
    options.basic_auth = _credentials(settings)
    if not options.basic_auth:
        # Flower reads this from the environment only; without it, its API wants a password even on loopback.
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
    # We keep its state.
    options.persistent = False
    # A line a request is noise; refusals and errors are not.
    logging.getLogger("tornado.access").setLevel(logging.WARNING)


def _credentials(settings: Settings) -> list[str]:
    password = settings.flower_password and settings.flower_password.get_secret_value()
    if not password:
        if not is_loopback(settings.flower_host):
            raise ConfigurationError(
                f"Flower on {settings.flower_host} can be reached from other machines and needs a password: "
                "set TUWEN_FLOWER_PASSWORD, or TUWEN_FLOWER_HOST=127.0.0.1"
            )
        if settings.auth == "keys":
            log.warning("without TUWEN_FLOWER_PASSWORD Flower shows every tenant's jobs to all users of this machine")
        return []
    credentials = f"{settings.flower_user}:{password}"
    if not credentials.isascii():
        raise ConfigurationError("TUWEN_FLOWER_USER and TUWEN_FLOWER_PASSWORD must be ASCII: Flower reads no other")
    return [credentials]


def _state_file(settings: Settings) -> StateFile:
    folder = settings.data_dir / "flower"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Flower cannot keep its state in {folder}: {error.strerror}") from error
    return StateFile(folder / "state.pickle")


def _listen(flower: Flower, settings: Settings) -> None:
    try:
        flower.start_http_server()
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {settings.flower_host} port {settings.flower_port}: {error.strerror}; "
            "choose others with TUWEN_FLOWER_HOST and TUWEN_FLOWER_PORT"
        ) from error


class _LocalFlower(Flower):
    """Flower that, without a password, answers only requests for this machine by name."""

    def __init__(self, settings: Settings):
        super().__init__(  # type: ignore[no-untyped-call]
            capp=celery_app(settings), options=options, **tornado_settings, transforms=[_NoOtherSite]
        )
        self._names = None if options.basic_auth else local_names(settings)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        if self._names is not None and host_name(request.headers.get("Host", "")) not in self._names:
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": HTTPStatus.FORBIDDEN})
        return super().find_handler(request, **kwargs)


class _NoOtherSite(OutputTransform):
    """Keeps other sites from reading answers, which Flower allows when it has no password, and from framing them."""

    def transform_first_chunk(self, status_code: int, headers: Any, chunk: bytes, *_: Any) -> Any:
        for name in [name for name in headers if name.startswith("Access-Control-")]:
            del headers[name]
        headers["Content-Security-Policy"] = "frame-ancestors 'none'"
        headers["X-Frame-Options"] = "DENY"
        return status_code, headers, chunk


class _PrivateMetrics(Metrics):
    """Metrics behind the password: Flower itself shows them, and the names of workers, to everybody."""

    def prepare(self) -> None:
        _ = self.current_user  # reading it refuses a request without the password
