"""Filters, duplicates and the dry run of bulk annotation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.settings import Settings
from tests.support.pictures import picture
from tuwen.annotations import Annotation, Caption, DropReason, Provenance
from tuwen.datasets import Filters
from workers.datasets.duplicates import Duplicates, Examined, difference, examine, fingerprint
from workers.datasets.estimate import Estimate, estimate
from workers.datasets.filters import drop_after_models, drop_before_models
from workers.datasets.sources import SourceImage, open_source

SETTINGS = Settings()


def caption(**fields: Any) -> Caption:
    made = Provenance(model="m", software="tuwen", created_at=datetime(2026, 11, 21, tzinfo=UTC))
    return Caption(**{"text": "x", "language": "en", "style": "short", "confidence": 0.5, "provenance": made} | fields)


# ── filters ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("filters", "size", "reason"),
    [
        ({"min_side": 100}, (99, 300), DropReason.TOO_SMALL),
        ({"min_side": 100}, (100, 300), None),
        ({"max_side": 300}, (100, 301), DropReason.TOO_LARGE),
        ({"max_side": 300}, (100, 300), None),
        ({"max_aspect": 2}, (100, 201), DropReason.ASPECT),
        ({"max_aspect": 2}, (201, 100), DropReason.ASPECT),
        ({"max_aspect": 2}, (100, 200), None),
        ({"min_side": 100}, (None, None), None),
    ],
)
def test_size_and_aspect(filters: dict[str, Any], size: tuple[int, int], reason: DropReason | None) -> None:
    drop = drop_before_models(Filters(**filters), Annotation(name="x", width=size[0], height=size[1]))
    assert (drop.reason if drop else None) == reason


@pytest.mark.parametrize(
    ("filters", "said", "reason"),
    [
        ({"min_score": 0.5}, {"score": 0.49}, DropReason.LOW_SCORE),
        ({"min_score": 0.5}, {"score": 0.5}, None),
        ({"min_confidence": 0.6}, {}, DropReason.LOW_CONFIDENCE),
        ({"min_confidence": 0.5}, {}, None),
        ({"in_domain": True}, {"out_of_domain": True}, DropReason.OUT_OF_DOMAIN),
        ({"in_domain": True}, {}, None),
    ],
)
def test_what_the_models_say(filters: dict[str, Any], said: dict[str, Any], reason: DropReason | None) -> None:
    drop = drop_after_models(Filters(**filters), Annotation(name="x", captions=(caption(**said),)))
    assert (drop.reason if drop else None) == reason


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────


def opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return opened(file.getvalue())


@pytest.mark.parametrize(
    "copied",
    [
        lambda image: jpeg(image, 60),
        lambda image: image.resize((150, 110), Image.Resampling.BICUBIC),
        lambda image: image.resize((600, 440), Image.Resampling.BICUBIC),
        lambda image: image.point(lambda value: int(value * 0.95)),
    ],
    ids=["jpeg", "smaller", "larger", "darker"],
)
def test_copies_look_alike_and_others_do_not(copied: Callable[[Image.Image], Image.Image]) -> None:
    images = [opened(picture(number, 300, 220)) for number in range(20)]
    looks = [fingerprint(image) or b"" for image in images]
    for number, image in enumerate(images):
        copy = fingerprint(copied(image)) or b""
        assert [index for index, other in enumerate(looks) if difference(other, copy) is not None] == [number]


def test_single_colours_look_like_nothing() -> None:
    assert fingerprint(Image.new("RGB", (64, 64), "red")) is None


def looked(name: str, bits: int, digest: int) -> Examined:
    return Examined(SourceImage(name, name), f"{digest:064x}", looks=bits.to_bytes(32))


def test_near_hashes_are_found_wherever_they_differ() -> None:
    rng = np.random.default_rng(0)
    with Duplicates() as duplicates:
        hashes = [int.from_bytes(rng.bytes(32)) for _ in range(300)]
        for number, bits in enumerate(hashes):
            assert duplicates.check(looked(f"{number}", bits, number)) is None
        for number, bits in enumerate(hashes):
            flipped = rng.choice(256, 11, replace=False)  # one for each band but one
            near = bits ^ sum(1 << int(bit) for bit in flipped)
            drop = duplicates.check(looked("copy", near, 1000 + number))
            assert drop is not None
            assert drop.reason is DropReason.NEAR_DUPLICATE
            assert drop.detail == f"looks like {number} (11 of 256 bits differ)"


def test_images_with_the_same_sky_do_not_hide_a_copy() -> None:
    rng = np.random.default_rng(0)
    sky = 0b11 << 240  # in the first band of all
    hashes = [sky | int.from_bytes(rng.bytes(29)) for _ in range(600)]
    with Duplicates() as duplicates:
        for number, bits in enumerate(hashes):
            assert duplicates.check(looked(f"{number}", bits, number)) is None
        for number in (0, 300, 599):
            drop = duplicates.check(looked("copy", hashes[number] ^ 1, 1000 + number))
            assert drop is not None
            assert drop.detail == f"looks like {number} (1 of 256 bits differ)"
        assert duplicates.check(looked("of a single colour", 0, 5000)) is None


def test_first_of_equal_files_stays() -> None:
    with Duplicates() as duplicates:
        assert duplicates.check(looked("first", 1, 1)) is None
        for _ in range(2):
            drop = duplicates.check(looked("second", 1, 1))
            assert drop is not None
            assert (drop.reason, drop.detail) == (DropReason.DUPLICATE, "the same bytes as first")


def source_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    wide = picture(1, 300, 100)
    large = BytesIO()
    opened(picture(2, 300, 220)).resize((600, 440), Image.Resampling.BICUBIC).save(large, "JPEG", quality=90)
    files = {
        "1.png": wide, "2.png": picture(2, 300, 220), "2 again.png": picture(2, 300, 220),
        "2 large.jpg": large.getvalue(),
        "3.png": picture(3, 20, 20), "broken.png": wide[:60], "empty.png": b"", "text.png": b"no image at all",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "1.txt").write_text("a caption")
    return folder


def test_entries_are_examined_in_order(tmp_path: Path) -> None:
    with open_source(str(source_folder(tmp_path)), SETTINGS) as source:
        entries = list(source.images())
        found = list(examine(entries, source.read, SETTINGS))
        assert [each.entry for each in found] == entries
        exact = list(examine(entries, source.read, SETTINGS, how="exact"))
    assert [each.sha256 for each in exact] == [each.sha256 for each in found]
    assert {each.looks for each in exact} == {None}
    errors = {each.entry.name: each.error.code for each in found if each.error}
    assert errors == {"broken.png": "image_corrupt", "empty.png": "image_corrupt", "text.png": "unsupported_format"}


# ── the dry run ───────────────────────────────────────────────────────────────────────────────────


def test_dry_run_counts_everything_and_estimates_the_time(tmp_path: Path) -> None:
    filters = Filters(min_side=50, duplicates="perceptual")
    with open_source(str(source_folder(tmp_path)), SETTINGS) as source:
        found = estimate(source, SETTINGS, filters, rate=0.5, devices=2)
    assert (found.entries, found.images, found.to_annotate, found.captioned) == (8, 5, 2, 1)
    assert found.problems == {"image_corrupt": 1}
    assert found.broken == {"image_corrupt": 1, "unsupported_format": 1}
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)
    assert found.dropped == {"duplicate": 1, "near_duplicate": 1, "too_small": 1}
    assert found.shorter_sides == {"< 64": 1, "64–128": 1, "128–256": 2, "256–512": 1}
    assert found.aspects == {"0.8–1.25": 1, "1.25–2": 3, "≥ 2": 1}
    assert (found.seconds, found.device_hours) == (2.0, pytest.approx(4 / 3600))
    assert any(example.startswith("broken.png: ") for example in found.examples)
    assert Estimate.model_validate_json(found.model_dump_json()) == found


def test_dry_run_without_filters_or_rate(tmp_path: Path) -> None:
    with open_source(str(source_folder(tmp_path)), SETTINGS) as source:
        found = estimate(source, SETTINGS, Filters())
    assert (found.to_annotate, found.dropped, found.seconds) == (5, {}, None)
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)


def test_dry_run_can_be_called_off(tmp_path: Path) -> None:
    class CalledOff(Exception):
        pass

    def no() -> None:
        raise CalledOff

    with open_source(str(source_folder(tmp_path)), SETTINGS) as source, pytest.raises(CalledOff):
        estimate(source, SETTINGS, Filters(), require_wanted=no)


def test_no_torch_to_read_and_write_data_sets() -> None:
    import subprocess

    program = (
        "import sys, workers.datasets.sources, workers.datasets.exports, workers.datasets.estimate\n"
        "assert not {'torch', 'pyarrow', 'ijson'} & set(sys.modules), 'imported before they are needed'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
