"""Own pictures to learn from: read from any source, checked, reduced and kept beside the run.

A source is a folder of images with `metadata.jsonl`, COCO captions, a CSV as Flickr's, webdataset tars, or whatever
else `workers.datasets.sources` recognises. What each model needs of an image:

* describer and matcher: one caption or more, in Chinese or English, in any words;
* recogniser and generator: what is to be seen, one kind of thing or two: columns `objects`, `colours`, `actions`,
  `sizes`, `counts`, `place` and `relation` of the source (see `workers.lab.training.own.labels`), or else its captions,
  as far as they speak of the drawn world (`workers.scenes.parsing`). What is not said is not learnt from that image.

Pictures are kept as they were read first, in `<run>/data`: a run that goes on learns from the same ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared.intake import images
from shared.settings import Settings
from tuwen.engine import Pixels
from tuwen.errors import ConfigurationError, TuwenError, Unavailable
from tuwen.jobs import Language
from workers.datasets.sources import Source, SourceImage, SourceProblem, open_source
from workers.engines.framing import fit
from workers.lab.training.checkpoint import write_atomically
from workers.lab.training.own.labels import UNKNOWN, label_set, labels_of
from workers.models.recognizer import Labels
from workers.models.text import LENGTH, symbols_of
from workers.models.trunk import SIDE
from workers.scenes.lexicon import KEYS

log = logging.getLogger(__name__)

Missing: TypeAlias = Literal["drop", "fill", "fail"]
Describe: TypeAlias = Callable[[Pixels, Language], Sequence[str]]
"""Captions of pictures, uint8 (count, 64, 64, 3), one each, in a language."""

SHARES: Mapping[str, int] = {"train": 8, "validation": 1, "test": 1}
"""How images are dealt out, by a digest of their pixels: the same image never is in two."""
TOGETHER = 256
"""Images that are decoded and described at a time."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is known of one picture."""

    name: str
    captions: tuple[str, ...]
    slots: tuple[int, ...]
    """As `workers.lab.training.own.labels` has them; all unknown where nothing is."""
    share: str
    """One of `SHARES`."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Pictures, uint8 (count, 64, 64, 3), and what is known of each."""

    known: Sequence[Example]
    pixels: Pixels
    labels: Labels
    """What slots mean."""

    def __len__(self) -> int:
        return len(self.known)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Self:
        return type(self)([self.known[row] for row in rows], self.pixels[np.asarray(rows, dtype=np.intp)], self.labels)

    def of(self, share: str) -> Self:
        """The part that trains, validates or tests.

        Raises:
            ConfigurationError: there is none.
        """
        rows = [row for row, example in enumerate(self.known) if example.share == share]
        if not rows:
            raise ConfigurationError(f"{len(self)} usable images are too few: none is left for {share}.", field="data")
        return self.take(rows)

    @property
    def texts(self) -> list[str]:
        return [caption for example in self.known for caption in example.captions]


@dataclass(slots=True)
class Counts:
    """What became of a source's images; written to `data/counts.json`."""

    images: int = 0
    """That a run can learn from."""
    captions: int = 0
    filled: int = 0
    """Images that the describer gave captions."""
    too_long: int = 0
    """Captions of more tokens than models read; their ends are not learnt."""
    labelled: int = 0
    """Images of which it is known what is to be seen."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Images and rows by the reason why they are not used."""
    shares: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is read, and what is done where something is missing."""

    source: str
    missing: Missing = "drop"
    captions: bool = True
    """Whether an image without a caption lacks something; else one without labels does."""
    limit: int | None = None
    root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


def own_data(wanted: Wanted, folder: Path, describe: Describe) -> Examples:
    """The usable images of a source, from `folder` where it was read before.

    Args:
        describe: writes captions where `wanted.missing` is "fill".

    Raises:
        ConfigurationError: something is missing or broken and `wanted.missing` is "fail"; no image is usable; or
            `folder` was made with other options.
        SourceUnusable: there is no such source, or it is unclear what it is.
    """
    asked = json.dumps(asdict(wanted), sort_keys=True)
    if not (folder / "examples.jsonl").exists():
        examples, counts = _read(wanted, describe)
        _store(examples, counts, asked, folder)
        log.info("%s: %s", wanted.source, json.dumps(asdict(counts), ensure_ascii=False))
    if json.loads((folder / "counts.json").read_text())["asked"] != json.loads(asked):
        raise ConfigurationError(f"{folder} holds other data or other options: delete it or choose another --out.")
    lines = (json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines())
    known = [Example(line["name"], tuple(line["captions"]), tuple(line["slots"]), line["share"]) for line in lines]
    return Examples(known, np.load(folder / "pixels.npy", mmap_mode="r"), _labels(folder))


def _labels(folder: Path) -> Labels:
    stored = json.loads((folder / "labels.json").read_text())
    return {role: tuple(values) for role, values in stored.items()}


def _store(examples: Examples, counts: Counts, asked: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pixels.npy", examples.pixels)
    write_atomically(folder / "labels.json", json.dumps(examples.labels, indent=2, ensure_ascii=False).encode())
    told = {**asdict(counts), "asked": json.loads(asked)}
    write_atomically(folder / "counts.json", (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    lines = "".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples.known)
    # Last: where it exists, everything does.
    write_atomically(folder / "examples.jsonl", lines.encode())


def _read(wanted: Wanted, describe: Describe) -> tuple[Examples, Counts]:
    counts = Counts()
    labels: Labels = KEYS
    if not wanted.captions:
        # What there is to be seen has to be known before the first picture is.
        with _open(wanted) as source:
            entries = islice(source.images(), wanted.limit)
            labels = label_set(entry.metadata for entry in entries if isinstance(entry, SourceImage))
    found: dict[str, tuple[Example, Pixels]] = {}
    for sources, pixels in _pictures(wanted, counts):
        for row, captions, slots in _complete(wanted, sources, pixels, labels, describe, counts):
            digest = hashlib.sha256(pixels[row].tobytes()).hexdigest()
            example = Example(sources[row].name, captions, slots, _share(digest))
            if digest in found:
                counts.leave_out("the same picture again, its captions joined")
                earlier = found[digest][0]
                joined = tuple(dict.fromkeys((*earlier.captions, *captions)))
                example = replace(earlier, captions=joined, slots=slots if earlier.slots == UNKNOWN else earlier.slots)
            found[digest] = example, pixels[row]
    if not found:
        raise ConfigurationError(f"{wanted.source} has no usable image: {counts.left_out}.", field="data")
    known = [example for example, _ in found.values()]
    texts = [caption for example in known for caption in example.captions]
    counts.images, counts.captions = len(known), len(texts)
    counts.labelled = sum(example.slots != UNKNOWN for example in known)
    counts.too_long = sum(len(symbols_of(text)) >= LENGTH for text in texts)
    counts.shares = dict(Counter(example.share for example in known))
    return Examples(known, np.stack([picture for _, picture in found.values()]), labels), counts


def _complete(
    wanted: Wanted, sources: Sequence[SourceImage], pixels: Pixels, labels: Labels, describe: Describe, counts: Counts
) -> Iterator[tuple[int, tuple[str, ...], tuple[int, ...]]]:
    """Row, captions and slots of each image that has what is wanted, or got it."""
    captions = [_usable(image.captions) for image in sources]

    def slots(row: int) -> tuple[int, ...]:
        return labels_of(sources[row].metadata, captions[row], labels)

    def lacks(row: int) -> bool:
        return not captions[row] if wanted.captions else slots(row) == UNKNOWN

    reason = "no caption" if wanted.captions else "nothing known to be seen"
    lacking = [row for row in range(len(sources)) if lacks(row)]
    if lacking and wanted.missing == "fail":
        raise _refusal(sources[lacking[0]].name, reason)
    if lacking and wanted.missing == "fill":
        # In the language of their neighbours.
        languages: Counter[Language] = Counter(language_of(text) for said in captions for text in said) or Counter(
            ["en"]
        )
        (language, _), *_ = languages.most_common()
        for row, text in zip(lacking, describe(pixels[lacking], language), strict=True):
            captions[row] = _usable([text])
        counts.filled += sum(not lacks(row) for row in lacking)
    for row in range(len(sources)):
        if lacks(row):
            counts.leave_out(reason)
        else:
            yield row, captions[row], slots(row)


def _share(digest: str) -> str:
    at = int(digest[:12], 16) % sum(SHARES.values())
    return next(name for name in SHARES if (at := at - SHARES[name]) < 0)


def _pictures(wanted: Wanted, counts: Counts) -> Iterator[tuple[list[SourceImage], Pixels]]:
    """The images that can be decoded, some at a time, with their pictures, uint8 (count, 64, 64, 3)."""
    settings = Settings()
    source = _open(wanted)

    def picture(entry: SourceImage | SourceProblem) -> tuple[SourceImage, Pixels] | tuple[str, str]:
        if isinstance(entry, SourceProblem):
            return entry.name, entry.code.value
        try:
            return entry, fit(images.pixels(source.read(entry), settings), SIDE, SIDE)
        except (ConfigurationError, Unavailable):
            # Nothing is wrong with the image: leaving it out would train on less without a word.
            raise
        except TuwenError as error:
            return entry.name, error.code

    with source, ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = islice(source.images(), wanted.limit)
        while together := list(islice(entries, TOGETHER)):
            good: list[tuple[SourceImage, Pixels]] = []
            for name, result in pool.map(picture, together):
                if isinstance(name, str):
                    if wanted.missing == "fail":
                        raise _refusal(name, str(result))
                    counts.leave_out(str(result))
                else:
                    good.append((name, result))  # type: ignore[arg-type]
            yield [image for image, _ in good], np.array([p for _, p in good], np.uint8).reshape(-1, SIDE, SIDE, 3)


def _open(wanted: Wanted) -> Source:
    return open_source(
        wanted.source,
        Settings(),
        root=wanted.root,
        image_column=wanted.image_column,
        caption_column=wanted.caption_column,
    )


def _refusal(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {reason}. Mend it, or give --missing drop or fill.", field="missing")


def _usable(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with something to read in them; the characters that stand for broken ones make one unusable."""
    texts = (" ".join(text.split()) for text in captions)
    return tuple(dict.fromkeys(t for t in texts if "\N{REPLACEMENT CHARACTER}" not in t and any(map(str.isalpha, t))))


def language_of(text: str) -> Language:
    """Chinese where a character of it is."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"
