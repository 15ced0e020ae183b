"""What may be done to a picture without making its captions false, and what its captions then have to say.

Pictures of the drawn world know their scene, and `workers.lab.training.data` changes both together. Own pictures have
only text: a mirror image swaps left and right in it, and where that is not certain to be right, the picture stays as
it is. Hues are turned only where no caption names a colour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuwen.engine import Pixels
from workers.lab.training.data import disturb, to_tensor
from workers.lab.training.disguise import recolour
from workers.lab.training.own.data import Examples
from workers.scenes.grammar import pick

RECOLOUR = 0.3
"""Share of the pictures whose hues are turned, of those where that is allowed."""

_WORD = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")
_SIDE = re.compile(r"(left|right)(hand|most|wards?)?", re.IGNORECASE)
_BEFORE = frozenset(
    (
        *(
            "the",
            "to",
            "on",
            "at",
            "from",
            "toward",
            "towards",
            "far",
            "top",
            "bottom",
            "upper",
            "lower",
        ),
        *(
            "its",
            "his",
            "her",
            "their",
            "facing",
            "looking",
            "turning",
            "pointing",
            "leaning",
            "moving",
        ),
        *(
            "walking",
            "running",
            "flying",
            "swimming",
            "heading",
            "faces",
            "looks",
            "turns",
            "points",
            "leans",
        ),
        *("moves", "walks", "runs", "flies", "swims", "heads", "turned"),
    )
)
"""Words after which "left" and "right" are sides, if what follows agrees."""
_PARTS = frozenset(
    (
        *(
            "side",
            "half",
            "hand",
            "arm",
            "foot",
            "leg",
            "eye",
            "ear",
            "wing",
            "paw",
            "shoulder",
            "corner",
            "edge",
        ),
        *(
            "sides",
            "hands",
            "arms",
            "feet",
            "legs",
            "eyes",
            "ears",
            "wings",
            "paws",
            "corners",
            "edges",
            "lane",
        ),
    )
)
_REMAINS = frozenset(("nothing", "none", "what", "all", "little", "much", "many", "some"))
_AFTER = frozenset(("to", "and", "or", "is", "are", "in", "on", "at", "with", "while", "of"))
_CLOCK = re.compile(r"clockwise|[顺逆]时针", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“”「」『』《》]")
_OTHER = {"left": "right", "right": "left", "左": "右", "右": "左"}

_COLOUR = re.compile(
    r"\b(?:red|scarlet|crimson|orange|yellow|gold|golden|green|blue|navy|teal|turquoise|cyan|purple|violet|pink|magenta"
    r"|brown|tan|beige|black|white|gr[ae]y|silver|maroon|lavender|olive|amber|blond|blonde|brunette|tawny"
    r"|colou?r\w*|(?:red|yellow|green|blu|orang|purpl|pink|brown|black|whit|gr[ae]y)+d?e?ish)\b"
    r"|[红橙橘黄绿青蓝紫粉褐棕黑白灰金银彩]",
    re.IGNORECASE,
)


def mirrored_text(text: str) -> str | None:
    """What is true of the mirror image of a picture that `text` is true of; None where that is not certain.

    "left" and "right" are also a verb and a judgement ("left behind", "the right size"); turns of the clock and
    writing do not read the same in a mirror, so texts that quote or tell a sense of rotation have none.
    """
    if _QUOTED.search(text) or _CLOCK.search(text):
        return None
    words = list(_WORD.finditer(text))
    written: list[str] = []
    end = 0
    for i, word in enumerate(words):
        side = _SIDE.fullmatch(word[0])
        if side is None:
            continue
        before = words[i - 1][0].lower() if i else ""
        after = words[i + 1][0].lower() if i + 1 < len(words) else ""
        if not (side[2] or _is_side(before, after)):
            return None
        written.append(text[end : word.start()])
        written.append(_other_side(side[1]))
        written.append(side[2] or "")
        end = word.end()
    swapped = "".join(written) + text[end:]
    # 左右 after a number means "about", and both sides are both sides in the mirror too.
    return re.sub(r"左右|右左|[左右]", lambda found: _OTHER.get(found[0], found[0]), swapped)


def _is_side(before: str, after: str) -> bool:
    """Whether "left" or "right" between these words is a side of something."""
    if after in _PARTS or after == "-" or (after == "of" and before not in _REMAINS):
        return True
    ends = not after or not after.isalpha() or after in _AFTER
    return before in _BEFORE and ends


def _other_side(side: str) -> str:
    """The other side, with the capitals of this one."""
    other = _OTHER[side.lower()]
    if side.isupper():
        return other.upper()
    return other.title() if side[0].isupper() else other


def names_colour(text: str) -> bool:
    """Whether a change of hue could make the text false.

    In doubt it could: 金 may be part of a name, and 白 of 白天 (daytime).
    """
    return _COLOUR.search(text) is not None


@dataclass(frozen=True, slots=True)
class CaptionedPictures:
    """Pictures of a batch with one caption each, as they are shown."""

    captions: list[str]
    pixels: Pixels
    """The pictures, uint8 (B, 64, 64, 3)."""
    rows: NDArray[np.intp]
    """Numbers of the examples that they are."""


def draw_captioned(data: Examples, size: int, rng: np.random.Generator) -> CaptionedPictures:
    """Random pictures with one of their captions; half of those that can be are mirrored together with it."""
    rows = np.sort(rng.choice(len(data), size, replace=len(data) < size))
    pixels = np.ascontiguousarray(data.pixels[rows])
    captions = [pick(rng, data.known[row].captions) for row in rows]
    for i in np.flatnonzero(rng.random(size) < 0.5):
        swapped = mirrored_text(captions[i])
        if swapped is not None:
            captions[i] = swapped
            pixels[i] = pixels[i, :, ::-1].copy()
    return CaptionedPictures(captions, pixels, rows)


def vary(drawn: CaptionedPictures, data: Examples, rng: np.random.Generator) -> Tensor:
    """The pictures (B, 3, 64, 64), with other hues where nothing said of them depends on hues, and in other light."""
    images = to_tensor(drawn.pixels)
    colourless = []
    for row in drawn.rows:
        captions = data.known[row].captions
        colourless.append(not any(names_colour(caption) for caption in captions))
    free = torch.tensor(colourless)
    turned, _ = recolour(images, RECOLOUR, rng)
    return disturb(torch.where(free[:, None, None, None], turned, images), rng)
