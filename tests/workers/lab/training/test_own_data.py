"""Own pictures: every format, what is missing or broken, labels, and changes that keep captions true."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuwen.engine import Pixels
from tuwen.errors import ConfigurationError
from tuwen.jobs import Language
from workers.lab.training.own.augmentation import draw_captioned, mirrored_text, names_colour, vary
from workers.lab.training.own.data import Examples, SourceOptions, language_of, read_own_data
from workers.lab.training.own.labels import UNKNOWN, label_set, labels_of, mirrored_slots
from workers.models.text import LENGTH
from workers.scenes.grammar import Scene, Thing, caption, mirrored, sample_scene, slots
from workers.scenes.lexicon import KEYS

TEXTS: Mapping[str, Sequence[str]] = {
    "a.png": ["a zebra to the left of a black cat", "一只斑马在黑猫的左边"],
    "b.png": ["two green boats on the water"],
    "c.png": ["a white rabbit jumping on the grass"],
}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 80, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, "png")
    return content.getvalue()


def image_folder(folder: Path) -> Path:
    lines = [json.dumps({"file_name": name, "captions": texts}) for name, texts in TEXTS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def coco(folder: Path) -> Path:
    images = [{"id": i, "file_name": name} for i, name in enumerate(TEXTS)]
    said = [{"image_id": i, "caption": text} for i, texts in enumerate(TEXTS.values()) for text in texts]
    said = [{"id": i, **annotation} for i, annotation in enumerate(said)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": said}))
    return folder / "captions.json"


def flickr(folder: Path) -> Path:
    with (folder / "results.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="|")
        table.writerow(["image_name", "comment_number", "comment"])
        for name, texts in TEXTS.items():
            table.writerows([name, number, text] for number, text in enumerate(texts))
    return folder / "results.csv"


def tars(folder: Path) -> Path:
    for number, (name, texts) in enumerate(TEXTS.items()):
        with tarfile.open(folder / f"shard-{number:03d}.tar", "w") as tar:
            stem = name.removesuffix(".png")
            for member, content in ((name, png(number)), (f"{stem}.txt", "\n".join(texts).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for name in TEXTS:
        (folder / name).unlink()
    return folder


def never(pixels: Pixels, language: Language) -> Sequence[str]:
    raise AssertionError("nothing was to be described")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(TEXTS):
        (photos / name).write_bytes(png(number))
    return photos


def counts(run: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads((run / "counts.json").read_text())
    return told


@pytest.mark.parametrize("form", [image_folder, coco, flickr, tars])
def test_every_format_is_read(folder: Path, tmp_path: Path, form: Callable[[Path], Path]) -> None:
    data = read_own_data(SourceOptions(str(form(folder))), tmp_path / "data", never)
    words = {word for text in data.texts for word in text.split()}
    assert {"zebra", "boats", "rabbit"} <= words
    assert len(data) == 3
    assert data.pixels.shape == (3, 64, 64, 3)
    assert counts(tmp_path / "data")["images"] == 3


def test_pictures_are_fitted_as_engines_fit_them(folder: Path, tmp_path: Path) -> None:
    from workers.engines.framing import fit

    data = read_own_data(SourceOptions(str(image_folder(folder))), tmp_path / "data", never)
    by_name = {example.name: row for row, example in enumerate(data.known)}
    assert np.array_equal(data.pixels[by_name["b.png"]], fit(np.asarray(picture(1)), 64, 64))


def spoil(folder: Path) -> Path:
    """Besides three good ones: no caption, a broken caption, a broken image, a missing one, one twice."""
    lines = [{"file_name": name, "text": texts[0]} for name, texts in TEXTS.items()]
    for number, (name, text) in enumerate((("d.png", ""), ("e.png", "a caf\ufffd"), ("f.png", "?!"))):
        (folder / name).write_bytes(png(10 + number))
        lines.append({"file_name": name, "text": text})
    (folder / "broken.png").write_bytes(png(20)[:300])
    (folder / "again.png").write_bytes(png(0))
    lines += [{"file_name": name, "text": "a dog"} for name in ("broken.png", "gone.png", "again.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_what_is_missing_or_broken_is_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    data = read_own_data(SourceOptions(str(spoil(folder)), "drop"), tmp_path / "data", never)
    assert [example.name for example in data.known] == ["a.png", "b.png", "c.png"]
    assert data.known[0].captions == ("a zebra to the left of a black cat", "a dog")
    told = counts(tmp_path / "data")
    assert (told["images"], told["captions"], told["filled"]) == (3, 4, 0)
    assert told["left_out"] == {
        "no caption": 3,
        "image_corrupt": 1,
        "not_found": 1,
        "the same picture again, its captions joined": 1,
    }


def test_missing_captions_are_filled_by_the_describer(folder: Path, tmp_path: Path) -> None:
    shown = []

    def describe(pixels: Pixels, language: Language) -> Sequence[str]:
        shown.append((pixels.shape, language))
        return [f"a red horse, number {i}" for i in range(len(pixels))]

    data = read_own_data(SourceOptions(str(spoil(folder)), "fill"), tmp_path / "data", describe)
    assert shown == [((3, 64, 64, 3), "en")]
    assert sorted(example.captions for example in data.known if example.name in ("d.png", "e.png", "f.png")) == [
        (f"a red horse, number {i}",) for i in range(3)
    ]
    told = counts(tmp_path / "data")
    assert (told["images"], told["filled"]) == (6, 3)


def test_something_missing_can_stop_the_run(folder: Path, tmp_path: Path) -> None:
    assert len(read_own_data(SourceOptions(str(image_folder(folder)), "fail"), tmp_path / "good", never)) == 3
    with pytest.raises(ConfigurationError, match="--missing drop"):
        read_own_data(SourceOptions(str(spoil(folder)), "fail"), tmp_path / "bad", never)
    assert not (tmp_path / "bad").exists()


def test_a_run_goes_on_with_the_pictures_it_saw(folder: Path, tmp_path: Path) -> None:
    wanted = SourceOptions(str(image_folder(folder)))
    before = read_own_data(wanted, tmp_path / "data", never)
    (folder / "b.png").unlink()
    after = read_own_data(wanted, tmp_path / "data", never)
    assert after.known == before.known
    assert np.array_equal(after.pixels, before.pixels)
    with pytest.raises(ConfigurationError, match="other options"):
        read_own_data(SourceOptions(str(folder), limit=2), tmp_path / "data", never)


def test_each_picture_is_in_one_share_for_good(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number}.png").write_bytes(png(number))
        (photos / f"{number}.txt").write_text(f"picture {number}")
    data = read_own_data(SourceOptions(str(photos)), tmp_path / "data", never)
    shares = {share: len(data.of(share)) for share in ("train", "validation", "test")}
    assert sum(shares.values()) == 60
    assert shares["train"] > 35
    assert min(shares.values()) > 0
    (photos / "0.png").rename(photos / "other.png")
    (photos / "0.txt").rename(photos / "other.txt")
    again = read_own_data(SourceOptions(str(photos)), tmp_path / "again", never)
    assert {e.captions: e.share for e in again.known} == {e.captions: e.share for e in data.known}


def test_long_captions_are_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "very " * LENGTH}))
    read_own_data(SourceOptions(str(folder)), tmp_path / "data", never)
    assert counts(tmp_path / "data")["too_long"] == 1


# ── labels ────────────────────────────────────────────────────────────────────────────────────────


def test_captions_of_the_drawn_world_say_what_is_to_be_seen() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        scene = sample_scene(rng, "train")
        for language in ("zh", "en"):
            found = labels_of({}, [caption(scene, language, "detailed", rng)])  # type: ignore[arg-type]
            true = slots(scene)
            # Nobody says that something stands still.
            still = [i for i in (2, 7) if true[i] == 0]
            assert [v for i, v in enumerate(found) if i not in still] == [
                v for i, v in enumerate(true) if i not in still
            ]
            assert all(found[i] == -1 for i in still)


def test_columns_come_before_captions_and_may_leave_things_open() -> None:
    columns = {"objects": "cat, 狗", "colours": ["黑色", ""], "actions": "jumping, standing", "place": "grass", "x": 1}
    found = labels_of(columns, ["a red horse"])
    dog, cat = KEYS["object"].index("dog") + 1, KEYS["object"].index("cat") + 1
    assert (found[0], found[5]) == (cat, dog)
    assert (found[1], found[6]) == (KEYS["colour"].index("black") + 1, 0)
    assert (found[2], found[7]) == (KEYS["action"].index("jumping") + 1, 0)
    assert found[10] == KEYS["place"].index("grass") + 1
    assert labels_of({"objects": "zebra"}, ["a red horse"]) == UNKNOWN


def test_columns_may_name_own_labels() -> None:
    rows = [{"objects": "Zebra, cat", "colours": "striped, 黑色"}, {"objects": "zebra"}, {"objects": "kitten"}]
    rows += [{"objects": "gnu"}, {"colours": "striped"}]
    labels = label_set(rows)
    assert labels["object"] == ("cat", "zebra")
    assert labels["colour"] == ("striped",)
    assert labels["place"] == KEYS["place"]
    assert labels_of(rows[0], [], labels)[:7] == (1, 0, -1, 0, 0, 2, 1)
    assert labels_of(rows[3], [], labels) == UNKNOWN
    assert labels_of({}, ["a black cat"], labels)[:2] == (1, 0)
    assert label_set([{"objects": "cat"}, {"text": "a zebra"}]) == KEYS
    with pytest.raises(ConfigurationError, match="fewer than two objects"):
        label_set([{"objects": "zebra"}, {"objects": "zebra"}])


def test_captions_that_agree_count_together() -> None:
    found = labels_of({}, ["a cat on the grass", "一只黑色的猫", "a red horse"])
    assert found == labels_of({}, ["a black cat on the grass"])
    assert labels_of({}, ["a zebra", "what a day"]) == UNKNOWN


def test_labels_of_mirror_images() -> None:
    scene = Scene((Thing("cat", "black"), Thing("tree", "green")), "grass", "left")
    assert mirrored_slots(slots(scene)) == tuple(slots(mirrored(scene)))
    above = Scene((Thing("cat", "black"), Thing("tree", "green")), "grass", "above")
    assert mirrored_slots(slots(above)) == tuple(slots(above))


# ── augmentation ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("a cat to the left of a dog", "a cat to the right of a dog"),
        ("Left of the house, on the right side", "Right of the house, on the left side"),
        ("the leftmost bird raises its right wing", "the rightmost bird raises its left wing"),
        ("a bird looking left", "a bird looking right"),
        ("a cat on the left-hand side", "a cat on the right-hand side"),
        ("猫在狗的左边，鸟在右上方", "猫在狗的右边，鸟在左上方"),
        ("草地上有三只左右的羊", "草地上有三只左右的羊"),
        ("a cat above a dog", "a cat above a dog"),
        ("the man left the room", None),
        ("the right size", None),
        ("nothing left of the cake", None),
        ('a sign "STOP" by the road', None),
        ("a wheel turning clockwise", None),
        ("轮子顺时针转动", None),
    ],
)
def test_a_mirror_swaps_left_and_right_where_that_is_certain(text: str, mirror: str | None) -> None:
    assert mirrored_text(text) == mirror
    if mirror is not None:
        assert mirrored_text(mirror) == text


def test_the_grammars_captions_are_mirrored_as_their_scenes_are() -> None:
    rng = np.random.default_rng(5)
    scenes = [
        scene for scene in (sample_scene(rng, "train") for _ in range(150)) if scene.relation in ("left", "right")
    ]
    assert len(scenes) > 10
    for scene in scenes:
        for language in ("zh", "en"):
            text = mirrored_text(caption(scene, language, "short", rng))  # type: ignore[arg-type]
            assert text is not None
            assert labels_of({}, [text]) == labels_of({}, [caption(mirrored(scene), language, "short")])  # type: ignore[arg-type]


def test_pictures_and_captions_are_mirrored_together() -> None:
    data = examples(["a cat left of a dog", "the man left", "a cat"])
    seen: dict[int, set[tuple[str, bool]]] = {row: set() for row in range(3)}
    for number in range(30):
        drawn = draw_captioned(data, 3, np.random.default_rng(number))
        for row, text, pixels in zip(drawn.rows, drawn.captions, drawn.pixels, strict=True):
            seen[row].add((text, bool(np.array_equal(pixels, data.pixels[row]))))
    assert seen[0] == {("a cat left of a dog", True), ("a cat right of a dog", False)}
    assert seen[1] == {("the man left", True)}
    assert seen[2] == {("a cat", True), ("a cat", False)}


def test_hues_are_turned_only_where_no_caption_names_one() -> None:
    data = examples(["a red car", "a car"])
    data.pixels[:] = (230, 30, 30)
    reds = {0: 1.0, 1: 1.0}
    for number in range(20):
        rng = np.random.default_rng(number)
        drawn = draw_captioned(data, 2, rng)
        means = vary(drawn, data, rng).mean((2, 3))
        for row, (red, green, blue) in zip(drawn.rows, means.tolist(), strict=True):
            reds[row] = min(reds[row], red - max(green, blue))
    assert reds[0] > 0.5
    assert reds[1] < 0.2


@pytest.mark.parametrize(
    ("text", "named"),
    [("a red car", True), ("a greyish sky", True), ("一只黑猫", True), ("a dish of fish", False), ("一只猫", False)],
)
def test_colours_are_recognised_in_text(text: str, named: bool) -> None:
    assert names_colour(text) is named


def test_languages_are_told_apart() -> None:
    assert [language_of(text) for text in ("一只 cat", "a cat")] == ["zh", "en"]


def examples(texts: Sequence[str]) -> Examples:
    from workers.lab.training.own.data import Example

    pixels = np.random.default_rng(0).integers(0, 255, (len(texts), 64, 64, 3), dtype=np.uint8)
    return Examples([Example(str(i), (text,), UNKNOWN, "train") for i, text in enumerate(texts)], pixels, KEYS)
