"""Own pictures to learn from: read from any source, checked, reduced and kept beside the run.

A source is a folder of images with `metadata.jsonl`, COCO captions, a CSV as Flickr's, webdataset tars, or whatever
else `workers.datasets.sources` recognises. What each model needs of an image:

* describer and matcher: one caption or more, in Chinese or English, in any words;
* recogniser and generator: what is to be seen, one kind of thing or two: columns `objects`, `colours`, `actions`,
  `sizes`, `counts`, `place` and `relation` of the source (see `workers.lab.training.own.labels`), or without them its
  captions, as far as they speak of the drawn world (`workers.scenes.parsing`). What is not said is not learnt from that
  image.

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
from typing import NamedTuple, Self, TypeAlias

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
from workers.lab.training.options import Missing
from workers.lab.training.own.labels import UNKNOWN, label_set, labels_of
from workers.models.recognizer import Labels
from workers.models.text import LENGTH, symbols_of
from workers.models.trunk import SIDE
from workers.scenes.lexicon import KEYS

log = logging.getLogger(__name__)

Describe: TypeAlias = Callable[[Pixels, Language], Sequence[str]]
"""A function from pictures, uint8 (count, 64, 64, 3), and a language to a caption of each picture."""

SHARES: Mapping[str, int] = {"train": 8, "validation": 1, "test": 1}
"""How images are shared out, by a digest of their pixels: the same image is never in two shares."""
TOGETHER = 256
"""Images that are decoded and described at a time."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is known of one picture."""

    name: str
    captions: tuple[str, ...]
    slots: tuple[int, ...]
    """Slots as `workers.lab.training.own.labels` has them; all unknown where nothing is known."""
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
        """The pictures with these numbers."""
        known = [self.known[row] for row in rows]
        pixels = self.pixels[np.asarray(rows, dtype=np.intp)]
        return type(self)(known, pixels, self.labels)

    def of(self, share: str) -> Self:
        """The pictures of one of the `SHARES`.

        Raises:
            ConfigurationError: the share is empty.
        """
        rows = [row for row, example in enumerate(self.known) if example.share == share]
        if not rows:
            raise ConfigurationError(
                f"{len(self)} usable images are too few: none is left for {share}.",
                field="data",
            )
        return self.take(rows)

    @property
    def texts(self) -> list[str]:
        """All captions of all pictures."""
        return [caption for example in self.known for caption in example.captions]


@dataclass(slots=True)
class Counts:
    """What became of a source's images; written to `data/counts.json`."""

    images: int = 0
    """Images that a run can learn from."""
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

    def leave_out(self, reason: str) -> None:
        """Counts one more image that is not used for this reason."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What is read, and what is done where something is missing."""

    source: str
    missing: Missing = "drop"
    captions: bool = True
    """True where each image needs a caption; False where it needs labels."""
    limit: int | None = None
    root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None


def read_own_data(wanted: SourceOptions, folder: Path, describe: Describe) -> Examples:
    """The usable images of a source, which are kept in `folder` and read from there the next time.

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
    return _load(folder)


def _load(folder: Path) -> Examples:
    known = []
    for text in (folder / "examples.jsonl").read_text().splitlines():
        line = json.loads(text)
        known.append(Example(line["name"], tuple(line["captions"]), tuple(line["slots"]), line["share"]))
    stored = json.loads((folder / "labels.json").read_text())
    labels: Labels = {role: tuple(values) for role, values in stored.items()}
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Examples(known, pixels, labels)


def _store(examples: Examples, counts: Counts, asked: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pixels.npy", examples.pixels)
    labels = json.dumps(examples.labels, indent=2, ensure_ascii=False)
    write_atomically(folder / "labels.json", labels.encode())
    facts = json.dumps({**asdict(counts), "asked": json.loads(asked)}, indent=2, ensure_ascii=False)
    write_atomically(folder / "counts.json", (facts + "\n").encode())
    lines = [json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples.known]
    # This file is the last one: where it exists, everything does.
    write_atomically(folder / "examples.jsonl", "".join(lines).encode())


def _read(wanted: SourceOptions, describe: Describe) -> tuple[Examples, Counts]:
    counts = Counts()
    labels = KEYS if wanted.captions else _read_labels(wanted)
    found: dict[str, tuple[Example, Pixels]] = {}
    for loaded in _load_images(wanted, counts):
        for complete in _complete(wanted, loaded, labels, describe, counts):
            digest = hashlib.sha256(complete.pixels.tobytes()).hexdigest()
            example = Example(complete.name, complete.captions, complete.slots, _share_of(digest))
            if digest in found:
                counts.leave_out("the same picture again, its captions joined")
                example = _join(found[digest][0], example)
            found[digest] = example, complete.pixels
    if not found:
        raise ConfigurationError(f"{wanted.source} has no usable image: {counts.left_out}.", field="data")
    known = [example for example, _ in found.values()]
    pixels = np.stack([picture for _, picture in found.values()])
    examples = Examples(known, pixels, labels)
    texts = examples.texts
    counts.images = len(known)
    counts.captions = len(texts)
    counts.labelled = sum(example.slots != UNKNOWN for example in known)
    counts.too_long = sum(len(symbols_of(text)) >= LENGTH for text in texts)
    counts.shares = dict(Counter(example.share for example in known))
    return examples, counts


def _read_labels(wanted: SourceOptions) -> Labels:
    """All labels of the source. They have to be known before the slots of the first picture are."""
    with _open(wanted) as source:
        entries = islice(source.images(), wanted.limit)
        return label_set(entry.metadata for entry in entries if isinstance(entry, SourceImage))


def _join(earlier: Example, later: Example) -> Example:
    """What two entries of the same picture say together."""
    captions = tuple(dict.fromkeys((*earlier.captions, *later.captions)))
    slots = later.slots if earlier.slots == UNKNOWN else earlier.slots
    return replace(earlier, captions=captions, slots=slots)


class _Complete(NamedTuple):
    """An image that has what is wanted."""

    name: str
    captions: tuple[str, ...]
    slots: tuple[int, ...]
    pixels: Pixels


def _complete(
    wanted: SourceOptions, loaded: _Loaded, labels: Labels, describe: Describe, counts: Counts
) -> Iterator[_Complete]:
    """The images that have what is wanted, some of them with a caption by `describe`."""
    captions = [_usable(image.captions) for image in loaded.images]

    def slots(row: int) -> tuple[int, ...]:
        return labels_of(loaded.images[row].metadata, captions[row], labels)

    def lacks(row: int) -> bool:
        return not captions[row] if wanted.captions else slots(row) == UNKNOWN

    reason = "no caption" if wanted.captions else "nothing known to be seen"
    lacking = [row for row in range(len(captions)) if lacks(row)]
    if lacking and wanted.missing == "fail":
        raise _refusal(loaded.images[lacking[0]].name, reason)
    if lacking and wanted.missing == "fill":
        language = _main_language(captions)
        for row, text in zip(lacking, describe(loaded.pixels[lacking], language), strict=True):
            captions[row] = _usable([text])
        counts.filled += sum(not lacks(row) for row in lacking)
    for row, image in enumerate(loaded.images):
        if lacks(row):
            counts.leave_out(reason)
        else:
            yield _Complete(image.name, captions[row], slots(row), loaded.pixels[row])


def _main_language(captions: Sequence[Sequence[str]]) -> Language:
    """The language of most captions; English where there are none."""
    languages = Counter(language_of(text) for said in captions for text in said)
    most_common = languages.most_common(1)
    return most_common[0][0] if most_common else "en"


def _share_of(digest: str) -> str:
    """Return which of the `SHARES` a picture belongs to by its digest."""
    rest = int(digest[:12], 16) % sum(SHARES.values())
    for name, size in SHARES.items():
        if rest < size:
            return name
        rest -= size
    raise AssertionError("a remainder is below its divisor")


class _Loaded(NamedTuple):
    """Some images that can be decoded."""

    images: list[SourceImage]
    pixels: Pixels
    """The pictures, uint8 (count, 64, 64, 3)."""


def _load_images(wanted: SourceOptions, counts: Counts) -> Iterator[_Loaded]:
    """The images that can be decoded, up to `TOGETHER` at a time.

    Raises:
        ConfigurationError: an image is broken and `wanted.missing` is "fail".
    """
    settings = Settings()
    source = _open(wanted)

    def load(
        entry: SourceImage | SourceProblem,
    ) -> tuple[SourceImage | SourceProblem, Pixels | str]:
        """The entry with its picture, or with what is wrong with it."""
        if isinstance(entry, SourceProblem):
            return entry, entry.code.value
        try:
            return entry, fit(images.pixels(source.read(entry), settings), SIDE, SIDE)
        except (ConfigurationError, Unavailable):
            # Nothing is wrong with the image. To leave it out would mean to train on less without telling anybody.
            raise
        except TuwenError as error:
            return entry, error.code

    with source, ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = islice(source.images(), wanted.limit)
        while together := list(islice(entries, TOGETHER)):
            good: list[SourceImage] = []
            pictures: list[Pixels] = []
            for entry, found in pool.map(load, together):
                if isinstance(entry, SourceImage) and not isinstance(found, str):
                    good.append(entry)
                    pictures.append(found)
                elif wanted.missing == "fail":
                    raise _refusal(entry.name, str(found))
                else:
                    counts.leave_out(str(found))
            yield _Loaded(good, np.array(pictures, np.uint8).reshape(-1, SIDE, SIDE, 3))


def _open(wanted: SourceOptions) -> Source:
    return open_source(
        wanted.source,
        Settings(),
        root=wanted.root,
        image_column=wanted.image_column,
        caption_column=wanted.caption_column,
    )


def _refusal(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {reason}. Repair it, or give --missing drop or fill.", field="missing")


def _usable(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions without repetitions that have letters and no broken characters in them, white space folded."""
    usable = []
    for caption in captions:
        text = " ".join(caption.split())
        broken = "\N{REPLACEMENT CHARACTER}" in text
        if not broken and any(character.isalpha() for character in text):
            usable.append(text)
    return tuple(dict.fromkeys(usable))


def language_of(text: str) -> Language:
    """Chinese where a character of the text is Chinese, otherwise English."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"
