"""Bulk annotation: its share of the engine's speed, its memory, and what it costs a person who waits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image
from sqlalchemy import create_engine, text

from shared.database.connections import driver_url
from shared.model_specs import parse_models
from shared.settings import Settings
from tests.bench.figures import Figure, percentile
from tests.bench.peers import _Quiet as Quiet
from tests.bench.producer import api
from tests.bench.worker import measure_between_peers
from tests.support.system import TENANT, System
from tuwen.client import Client
from tuwen.datasets import Dataset, DatasetRequest, DatasetStatus
from tuwen.engine import DescribeItem
from tuwen.jobs import Kind
from workers.lab.world.render import render
from workers.scenes.grammar import sample_scene

NULL = "import:tests.support.fakes:NullDescriber"
WAITING = "import:tests.support.fakes:SlowDescriber"


def bulk(settings: Settings, folder: Path) -> list[Figure]:
    """Bulk describe against the same engine fed whole batches from memory."""
    figures = []
    for name, spec, images, goal in (
        ("built in", settings.describe, 3000, "≥ 0.85"),
        ("0.2 s a batch of 16", WAITING, 3200, "≥ 0.97"),
    ):
        source = write_drawn(folder / f"source-{images}", images)
        bare, rate = measure_between_peers(
            partial(bare_describer, settings, spec, source),
            partial(bulk_rate, settings.model_copy(update={"describe": spec}), folder, source),
        )
        figures.append(Figure(f"bulk describe, {name}", rate, "images/s", "engine in a bare loop", bare, goal))
    return figures


def bulk_rate(settings: Settings, folder: Path, source: Path) -> float:
    """Images per second of a run over `source`, of which there may be one in `folder`."""
    with bulk_system(settings, folder) as system:
        system.worker(f"bulk-{source.name}")
        id = annotate(system, source, folder / f"out-of-{source.name}", shard_size=500)
        wait_until_over(system, id)
        return images_per_second(system, id)


def scale(settings: Settings, folder: Path) -> list[Figure]:
    """100,000 images through a null engine: memory of every process, speed of planning, rows."""
    source = write_painted(folder / "source", 100_000)
    with (
        bulk_system(settings.model_copy(update={"describe": NULL}), folder) as system,
        api(system.settings) as (_, web),
    ):
        alone = annotate(system, source, folder / "out-alone", shard_size=500, languages=["zh"])
        while not system.database.datasets.get(alone, TENANT).progress.planned:
            time.sleep(0.5)
        system.database.datasets.cancel(alone, TENANT)
        housekeeper, worker = system.housekeepers[0], system.worker()
        processes = {
            "API": web,
            "housekeeper": housekeeper.process,
            "worker": worker.process,
            "engine": worker.engine,
        }
        id = annotate(system, source, folder / "out", shard_size=500)
        early: dict[str, int] = {}
        late: dict[str, int] = {}
        while not (dataset := system.database.datasets.get(id, TENANT)).status.terminal:
            ended = dataset.progress.done + dataset.progress.failed
            resident = {name: process.memory_info().rss for name, process in processes.items()}
            if ended <= 10_000:
                early = resident
            late = {name: max(late.get(name, 0), size) for name, size in resident.items()}
            time.sleep(0.5)
        require(dataset)
        rows = query(system, "SELECT count(*) FROM shards WHERE dataset_id = :id", id)
        planning, undisturbed = seconds_of_planning(system, id), seconds_of_planning(system, alone)
        rate = images_per_second(system, id)
    return [
        Figure(
            "planning from a folder beside the worker",
            100_000 / planning,
            "images/s",
            "before it runs",
            100_000 / undisturbed,
            "≥ 2000 images/s",
        ),
        Figure("100,000 images, null engine", rate, "images/s"),
        Figure("100,000 images, rows of shards", rows, "rows", goal="200"),
        *(
            Figure(f"most memory of the {name}", late[name] / 2**20, "MiB", "at 10,000", early[name] / 2**20, "≤ 1.10")
            for name in processes
        ),
    ]


def interactive(settings: Settings, folder: Path) -> list[Figure]:
    """Compare p95 of single jobs while a data set fills the worker, whose batches take 0.2 s, with an idle worker's."""
    source = write_painted(folder / "source", 4000)
    with (
        bulk_system(settings.model_copy(update={"describe": WAITING}), folder) as system,
        api(system.settings) as (url, _),
    ):
        system.worker()
        with Client(url) as client:
            image = client.source(next(source.rglob("*.png")))
            idle = [one(client, image) for _ in range(40)]
            id = annotate(system, source, folder / "out", shard_size=500)
            while system.database.datasets.get(id, TENANT).progress.done < 100:
                time.sleep(0.2)
            busy = [one(client, image) for _ in range(80)]
            still_running = not system.database.datasets.get(id, TENANT).status.terminal
        if not still_running:
            raise RuntimeError("the data set was over before the jobs were")
    batch = 200.0
    return [
        Figure(
            "a single job during a bulk run, p95",
            percentile(busy, 95) * 1000,
            "ms",
            "idle + one batch",
            percentile(idle, 95) * 1000 + batch,
            "≤ 1",
        )
    ]


def one(client: Any, image: Any) -> float:
    """Seconds from submission to result."""
    started = time.perf_counter()
    client.wait(client.describe(image).id)
    return time.perf_counter() - started


def bare_describer(settings: Settings, spec: str, source: Path) -> float:
    """Images per second of the engine alone, in a process of its own: fed from memory, in batches of its best size."""
    command = [sys.executable, "-m", "tests.bench.datasets", spec, settings.device, str(source)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def main(spec: str, device: str, source: str) -> None:
    from workers.inference.catalog import engine_path
    from workers.inference.cores import usable_cores

    if spec == "builtin":
        import torch

        torch.set_num_threads(usable_cores())
    module, name = engine_path(Kind.DESCRIBE, parse_models(spec)[0])
    engine = getattr(import_module(module), name)(device=device)
    items = [DescribeItem(np.array(Image.open(file).convert("RGB"))) for file in sorted(Path(source).iterdir())[:800]]
    limit = engine.batch_limit(items[0])
    engine.run(items[:limit], Quiet())
    sizes = sorted({size for size in (8, 16, 32, 64, limit) if size <= limit})
    sys.stdout.write(f"{max(_rate(engine, items, size) for size in sizes)}\n")


def _rate(engine: Any, items: list[DescribeItem], size: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(items), size):
        engine.run(items[start : start + size], Quiet())
    return len(items) / (time.perf_counter() - started)


# ── sources ───────────────────────────────────────────────────────────────────────────────────────


def write_drawn(folder: Path, images: int) -> Path:
    """Pictures of the drawn world, as the built-in models know them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(images):
        Image.fromarray(render(sample_scene(random, "train"), 64)).save(folder / f"{number:05d}.png")
    return folder


def write_painted(folder: Path, images: int) -> Path:
    """Small files, a thousand to a folder."""
    files = []
    for shade in range(64):
        file = BytesIO()
        Image.fromarray(np.full((8, 8, 3), (128, shade, 64), np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    for number in range(images):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(files[number % len(files)])
    return folder


# ── a system ──────────────────────────────────────────────────────────────────────────────────────


class BulkSystem(System):
    housekeepers: list[Any]


@contextmanager
def bulk_system(settings: Settings, folder: Path) -> Iterator[BulkSystem]:
    """Run a housekeeper and a worker that only describes."""
    settings = settings.model_copy(update={"kinds": (Kind.DESCRIBE,)})
    system = BulkSystem(Settings(**settings.model_dump(exclude_unset=True)), folder)
    try:
        system.housekeepers = [system.housekeeper()]
        yield system
    finally:
        system.close()


def annotate(system: System, source: Path, destination: Path, **wishes: Any) -> UUID:
    request = DatasetRequest(source=str(source), destination=str(destination), **wishes)
    id = system.database.datasets.submit(request, TENANT)
    system.queue.publish_datasets([id])
    return id


def wait_until_over(system: System, id: UUID, timeout: float = 1800.0) -> Dataset:
    system.wait_until(
        lambda: system.database.datasets.get(id, TENANT).status.terminal, "the end of a data set", timeout
    )
    return require(system.database.datasets.get(id, TENANT))


def require(dataset: Dataset) -> Dataset:
    if dataset.status is not DatasetStatus.SUCCEEDED or dataset.progress.failed:
        raise RuntimeError(dataset.model_dump_json())
    return dataset


def seconds_of_planning(system: System, id: UUID) -> float:
    return query(system, "SELECT EXTRACT(EPOCH FROM planned_at - started_at) FROM datasets WHERE id = :id", id)


def images_per_second(system: System, id: UUID) -> float:
    """Images a second, from the first claim of a shard to the end of the last."""
    statement = (
        "SELECT sum(images) / EXTRACT(EPOCH FROM max(finished_at) - min(started_at)) FROM shards WHERE dataset_id = :id"
    )
    return query(system, statement, id)


def query(system: System, statement: str, id: UUID) -> float:
    engine = create_engine(driver_url(system.settings.database_url))
    with engine.connect() as connection:
        value = float(connection.execute(text(statement), {"id": id}).scalar_one())
    engine.dispose()
    return value


if __name__ == "__main__":
    main(*sys.argv[1:])
