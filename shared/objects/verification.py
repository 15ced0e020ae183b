"""Compares rows with objects: which of the objects that the database names are missing in the storage."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shared.database import Database
from shared.database.references import Reference, Subject
from shared.objects.storage import ObjectStore
from tuwen.errors import NotFound

AT_ONCE = 16
"""Objects that are looked at side by side."""

REMEDIES = {
    Subject.RESULT: "the picture is lost; its owner submits the job again (the same seed draws the same picture)",
    Subject.UPLOAD: "its owner uploads the same image again, under the same id; jobs that name it fail until then",
    Subject.DOCUMENT: "its owner uploads the file again; a batch whose input it was has to be made anew",
    Subject.PLAN: "the data set cannot be exported; start it anew: tuwen annotate",
    Subject.ANNOTATIONS: "the captions of this shard are lost; annotate the data set again",
}
"""What may be done about each missing object. Nothing is changed here."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An object that is named and is not there as it should be."""

    subject: Subject
    id: str
    key: str
    problem: str
    """`missing`, or how its size differs."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found."""

    subject: Subject
    looked_at: int
    faults: list[Fault]


def verify(database: Database, store: ObjectStore, subjects: tuple[Subject, ...] = tuple(Subject)) -> Iterator[Step]:
    """Look for every object that a row names, in steps of some thousand.

    Raises:
        DatabaseUnavailable, StorageUnavailable: an object is only called missing where the storage says so.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verify") as pool:
        for subject in subjects:
            for page in database.references.pages(subject):
                found = pool.map(lambda reference: _look_for(store, reference), page)
                yield Step(subject, len(page), [fault for fault in found if fault])


def _look_for(store: ObjectStore, reference: Reference) -> Fault | None:
    try:
        size = store.head(reference.key).size
    except NotFound:
        problem = "missing"
    else:
        if reference.size is None or size == reference.size:
            return None
        problem = f"has {size} bytes instead of {reference.size}"
    return Fault(reference.subject, reference.id, reference.key, problem)
