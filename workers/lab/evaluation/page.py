"""A report as one HTML file that needs nothing else: tables, pictures with verdicts, confusions, failures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from tuwen.engine import Pixels
from tuwen.jobs import RecognizedObject, RecognizeResult
from workers.lab.evaluation.description import Captions, facts
from workers.lab.evaluation.generation import SEEDS, Drawn, Gallery
from workers.lab.evaluation.prompts import TAGS
from workers.lab.evaluation.recognition import right
from workers.lab.evaluation.tables import tables
from workers.lab.training.data import Pictures
from workers.scenes.grammar import Scene, caption
from workers.scenes.parsing import parse

SHOWN = 6
"""Prompts of each grid."""
FAILURES = 24


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture with what was wanted and what was found."""

    picture: Pixels
    wanted: str
    found: str


def page(report: dict[str, Any], gallery: Gallery, failures: dict[str, list[Failure]]) -> str:
    """The HTML page of a report."""
    folder = Path(__file__).parent
    loader = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    grids = [
        (f"{tag}, {column} combinations", tags[tag][:SHOWN]) for tag in TAGS for column, tags in gallery.items() if tags
    ]
    loader.filters["data_url"] = data_url
    return loader.get_template("page.html").render(
        report=report,
        tables=list(tables(report)),
        grids=grids,
        seeds=SEEDS,
        failures=failures,
        wrong=wrong_pictures(gallery),
    )


def data_url(pixels: Pixels) -> str:
    """A picture, uint8 (height, width, 3), as a PNG in a URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def wrong_pictures(gallery: Gallery) -> list[Failure]:
    """Pictures that the judge refused, some of each tag and column."""
    found: list[list[Failure]] = []
    for column, tags in gallery.items():
        for tag, drawn in tags.items():
            found.append([_to_failure(each, tag, column) for each in drawn if not each.right.all()])
    most = max(map(len, found), default=0)
    return [each[i] for i in range(most) for each in found if i < len(each)][: 2 * FAILURES]


def _to_failure(drawn: Drawn, tag: str, column: str) -> Failure:
    index = int((~drawn.right).argmax())
    doubted = min(drawn.atoms[index].items(), key=lambda atom: atom[1])
    return Failure(
        drawn.pictures[index],
        drawn.prompt.text,
        f"{tag}, {column}; least sure: {doubted[0]} {doubted[1]:.2f}",
    )


def wrong_captions(data: Pictures, captions: Captions) -> dict[str, list[Failure]]:
    """Short captions that are not what they should be."""
    found: dict[str, list[Failure]] = {}
    for language, styles in captions.items():
        pairs = zip(data.scenes, data.pixels, styles["short"], strict=True)
        found[f"captions, {language}"] = [
            Failure(picture, caption(scene.canonical(), language, "short"), result.text)
            for scene, picture, result in pairs
            if parse(result.text).facts() != facts(scene, "short")
        ][:FAILURES]
    return found


def wrong_recognitions(data: Pictures, results: Sequence[RecognizeResult]) -> list[Failure]:
    """Pictures in which something was recognised wrongly, at most `FAILURES`."""
    return [
        Failure(picture, _short(scene), _list(result.objects, result.scene, result.relation))
        for scene, picture, result in zip(data.scenes, data.pixels, results, strict=True)
        if not right(scene, result)
    ][:FAILURES]


def _short(scene: Scene) -> str:
    scene = scene.canonical()
    things = [f"{t.count} {t.size} {t.colour} {t.object} {t.action or ''}".strip() for t in scene.things]
    return "; ".join([*things, scene.place, *([scene.relation] if scene.relation else [])])


def _list(objects: Sequence[RecognizedObject], place: str | None, relation: str | None) -> str:
    things = [
        f"{o.count} {o.attributes.get('size', '')} {o.attributes.get('colour', '')} {o.name} {o.action or ''}".strip()
        for o in objects
    ]
    return "; ".join([*things, place or "", *([relation] if relation else [])])
