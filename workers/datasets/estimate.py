"""A dry run: what is in a source and what annotating it would take, before anything is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field

from shared.settings import Settings
from tuwen.annotations import Annotation, DropReason
from tuwen.datasets import Filters
from workers.datasets.duplicates import Duplicates, Examined, examine
from workers.datasets.filters import drop_before_models
from workers.datasets.sources import Source, SourceImage

_SIDES = (64, 128, 256, 512, 768, 1024, 2048)
_ASPECTS = (0.5, 0.8, 1.25, 2.0)
_EXAMPLES = 20


class Estimate(BaseModel):
    """What a dry run found out. Problems are rows that name no image; broken files cannot be read or decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: int = Field(description="rows and files of the source, the problems included")
    images: int = Field(description="images that can be annotated")
    bytes: int = Field(description="bytes of all files that were read")
    problems: dict[str, int] = Field(description="rows that name no image, by code")
    broken: dict[str, int] = Field(description="files that cannot be read or decoded, by code")
    examples: tuple[str, ...] = Field(description="the first problems and broken files")
    exact_duplicates: int
    near_duplicates: int
    dropped: dict[str, int] = Field(description="images that the filters drop, by their first reason")
    captioned: int = Field(description="images that come with a caption")
    shorter_sides: dict[str, int] = Field(description="images by their shorter side in pixels")
    aspects: dict[str, int] = Field(description="images by width over height")
    to_annotate: int = Field(description="images that would reach a model")
    images_per_second: float | None = Field(None, description="measured speed of one device")
    devices: int = 1
    seconds: float | None = Field(None, description="time until all devices together have annotated all images")
    device_hours: float | None = None


def estimate(
    source: Source,
    settings: Settings,
    filters: Filters,
    *,
    rate: float | None = None,
    devices: int = 1,
    require_wanted: Callable[[], None] = lambda: None,
) -> Estimate:
    """Read and decode every image of a source, and count what annotating it would take.

    Args:
        rate: images that one device annotates in a second; None where it was not measured.
        require_wanted: called now and then; raises when the estimate is no longer wanted.

    Raises:
        SourceUnusable, StorageUnavailable: as `Source.images`.
    """
    tally = _Tally(filters)
    with Duplicates() as before_these:
        for number, image in enumerate(examine(source.images(), source.read, settings)):
            if number % 100 == 0:
                require_wanted()
            tally.add(image, before_these)
    return tally.estimate(rate, max(1, devices))


class _Tally:
    """Counts that do not grow with the source."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._entries = self._bytes = self._captioned = self._to_annotate = self._images = 0
        self._problems: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._copies: Counter[DropReason] = Counter()
        self._dropped: Counter[str] = Counter()
        self._sides: Counter[int] = Counter()
        self._aspects: Counter[int] = Counter()
        self._examples: list[str] = []

    def add(self, image: Examined, duplicates: Duplicates) -> None:
        self._entries += 1
        self._bytes += image.size or 0
        if image.error is not None:
            counts = self._broken if isinstance(image.entry, SourceImage) else self._problems
            counts[image.error.code] += 1
            if len(self._examples) < _EXAMPLES:
                self._examples.append(f"{image.entry.name}: {image.error.detail}")
            return
        self._images += 1
        self._captioned += isinstance(image.entry, SourceImage) and bool(image.entry.captions)
        width, height = image.width or 1, image.height or 1
        self._sides[_step(_SIDES, min(width, height))] += 1
        self._aspects[_step(_ASPECTS, width / height)] += 1
        copy = duplicates.check(image)
        if copy is not None:
            self._copies[copy.reason] += 1
        drop = drop_before_models(self._filters, Annotation(name=image.entry.name, width=width, height=height))
        reason = drop.reason if drop is not None else copy.reason if copy is not None else None
        if reason is not None and (drop is not None or self._drops(reason)):
            self._dropped[reason] += 1
        else:
            self._to_annotate += 1

    def estimate(self, rate: float | None, devices: int) -> Estimate:
        device_seconds = self._to_annotate / rate if rate else None
        return Estimate(
            entries=self._entries,
            images=self._images,
            bytes=self._bytes,
            problems=dict(self._problems),
            broken=dict(self._broken),
            examples=tuple(self._examples),
            exact_duplicates=self._copies[DropReason.DUPLICATE],
            near_duplicates=self._copies[DropReason.NEAR_DUPLICATE],
            dropped=dict(self._dropped),
            captioned=self._captioned,
            shorter_sides=_name_steps(self._sides, _SIDES),
            aspects=_name_steps(self._aspects, _ASPECTS),
            to_annotate=self._to_annotate,
            images_per_second=rate,
            devices=devices,
            seconds=None if device_seconds is None else device_seconds / devices,
            device_hours=None if device_seconds is None else device_seconds / 3600,
        )

    def _drops(self, reason: DropReason) -> bool:
        wanted = {"keep": (), "exact": (DropReason.DUPLICATE,)}
        return reason in wanted.get(self._filters.duplicates, (DropReason.DUPLICATE, DropReason.NEAR_DUPLICATE))


def _step(steps: tuple[float, ...], value: float) -> int:
    """Count the steps that the value has reached."""
    return sum(value >= step for step in steps)


def _name_steps(counts: Counter[int], steps: tuple[float, ...]) -> dict[str, int]:
    """Name the steps of a histogram, from the smallest; empty ones are left out."""
    bounds = ["", *(f"{step:g}" for step in steps), ""]
    names = [f"{low}–{high}" if low and high else f"≥ {low}" if low else f"< {high}" for low, high in pairwise(bounds)]
    return {names[step]: counts[step] for step in sorted(counts)}
