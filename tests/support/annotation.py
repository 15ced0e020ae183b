"""Data sets for tests of the whole system: images that can be distinguished, and the results of each."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image

from tests.support.system import TENANT, System
from tuwen.datasets import Dataset, DatasetRequest


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of image `number`: no two are alike, and none asks a fake engine for a trick."""
    return (number // 200, number % 200, 77)


def paint(folder: Path, numbers: range) -> Path:
    """Write images of 8×8 pixels, each of a colour of its own. Returns the folder."""
    for number in numbers:
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = BytesIO()
        Image.new("RGB", (8, 8), colour(number)).save(file, "PNG")
        path.write_bytes(file.getvalue())
    return folder


def annotate(system: System, source: Path, destination: Path, **wishes: Any) -> UUID:
    """Submit a data set as the API does: commit, then publish."""
    request = DatasetRequest.model_validate({"source": str(source), "destination": str(destination), **wishes})
    id = system.database.datasets.submit(request, TENANT)
    system.queue.publish_datasets([id])
    return id


def dataset(system: System, id: UUID) -> Dataset:
    """Return the data set as the database has it."""
    return system.database.datasets.get(id, TENANT)


def wait_until_over(system: System, id: UUID) -> Dataset:
    """Wait until the data set is over, and return it."""
    system.wait_until(lambda: dataset(system, id).status.terminal, "the end of a data set")
    return dataset(system, id)


def records(destination: Path) -> list[dict[str, Any]]:
    """Read the records of an export as JSON lines."""
    [file] = [file for file in destination.glob("*.jsonl") if file.name not in ("errors.jsonl", "dropped.jsonl")]
    return [json.loads(line) for line in file.read_text().splitlines()]


def failures(destination: Path) -> list[dict[str, Any]]:
    """Read the errors that an export lists."""
    return [json.loads(line) for line in (destination / "errors.jsonl").read_text().splitlines()]


def mistakes(destination: Path, numbers: range) -> list[str]:
    """List the mistakes in an export of the images that `paint` made: missing, doubled, or with another's caption."""
    found = records(destination)
    names = Counter(record["name"] for record in found)
    wrong = [f"{name} is there {count} times" for name, count in names.items() if count > 1]
    expected = {f"{number // 1000:03d}/{number:06d}.png": number for number in numbers}
    wrong += [f"{name} is missing" for name in expected.keys() - names.keys()]
    wrong += [f"{name} is no image of the source" for name in names.keys() - expected.keys()]
    for record in found:
        red, green, blue = colour(expected.get(record["name"], 0))
        if f"the colour {red}-{green}-{blue}" not in json.dumps(record):
            wrong.append(f"{record['name']} has another's caption")
    return wrong
