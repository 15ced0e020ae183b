"""The character encoding of texts that nobody declared: recognised over a whole file or folder, or not at all.

UTF-8 and UTF-16 are recognised by their bytes alone. Everything else is chardet's verdict over all that is not UTF-8,
and only where no other reading is nearly as likely and the text that comes out looks like words: a caption that is
guessed wrong would be believed for years, one that is refused needs `--encoding`.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tuwen.errors import ConfigurationError

SAMPLE = 200_000
"""Bytes that are not UTF-8 by which the encoding is judged."""
MARGIN = 1.25
"""How much likelier than the next one a reading must be. Of 1,320 samples of 1 to 50 captions in eight encodings, 1,210
were read right with it and none wrong; with no margin 28 were wrong."""
_ODD = 0.05
"""Share of characters beyond ASCII that may be where no word has one; a wrong reading has most there."""
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_LINE = 64 * 2**20
HEAD = 4096
"""Bytes of a file that `detect_head` looks at."""


class Undecodable(Exception):
    """A text is not in the encoding that its file is in, or nobody knows which one that is. The message says so."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a file or folder is written in; `name` is None where that cannot be decided."""

    name: str | None
    mark: bytes = b""
    """The byte order mark at the start."""

    @property
    def wide(self) -> bool:
        """Whether a character of ASCII is not one byte, so that lines cannot be divided at that byte."""
        return self.name in ("utf-16-le", "utf-16-be")

    def decode(self, text: bytes) -> str:
        """Decode a whole text.

        Raises:
            Undecodable
        """
        try:
            return text.decode(self.name or "ascii")
        except UnicodeDecodeError as error:
            raise Undecodable(self.explain()) from error

    def explain(self) -> str:
        """Say why a text cannot be decoded, and what helps."""
        if self.name is None:
            return "it cannot be told in which encoding the text is written: set encoding, such as gb18030"
        return f"the text is not {self.name}: set encoding to the one in which it is written"


UTF_8 = Encoding("utf-8")
UNKNOWN = Encoding(None)


def named(encoding: str) -> Encoding:
    """The encoding that a person names, as Python's codecs know it.

    Raises:
        LookupError: there is none of this name, or it is none of characters.
    """
    found = codecs.lookup(encoding)
    "".encode(found.name)  # LookupError for codecs such as base64
    if found.name == "utf-16":
        return Encoding("utf-16-le", codecs.BOM_UTF16_LE)
    return Encoding({"utf-8-sig": "utf-8", "gb2312": "gb18030", "gbk": "gb18030"}.get(found.name, found.name))


def detect_file(file: BinaryIO, asked: str | None = None) -> Encoding:
    """Detect the encoding of a text file, all of which is read; it is at its first character afterwards.

    Args:
        asked: the encoding that a person names. A byte order mark is believed before it.
    """
    file.seek(0)
    found = detect_head(file.read(HEAD), asked)
    if found is None:
        file.seek(0)
        found = detect(iter(lambda: file.readline(_LINE), b""))
    file.seek(len(found.mark))
    return found


def detect_head(head: bytes, asked: str | None) -> Encoding | None:
    """The encoding that the first bytes of a file or a person tell; None where all of it has to be read."""
    found = detect_mark(head)
    if found is None and asked is not None:
        found = Encoding(named(asked).name)
    if found is None and b"\0" in head:
        found = Encoding(_order_of(head))
    return found


def detect_mark(head: bytes) -> Encoding | None:
    """The encoding that a byte order mark tells; None without one."""
    return next((Encoding(name, mark) for mark, name in _MARKS.items() if head.startswith(mark)), None)


def detect(texts: Iterable[bytes]) -> Encoding:
    """Detect the one encoding of many texts without a byte order mark: the lines of a file, or captions of a folder.

    Where half of those beyond ASCII are UTF-8, it is that, and the others are broken.
    """
    utf_8 = foreign = 0
    sample = bytearray()
    for text in texts:
        if text.isascii():
            continue
        if is_utf_8(text):
            utf_8 += 1
        else:
            foreign += 1
            if len(sample) < SAMPLE:
                sample += text.rstrip(b"\r\n")[:SAMPLE] + b"\n"
    return UTF_8 if utf_8 >= foreign else Encoding(_judge(bytes(sample)))


def is_utf_8(text: bytes) -> bool:
    """Whether the bytes are valid UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_surely_utf_8(text: bytes) -> bool:
    """Whether the bytes are valid UTF-8, and not by chance: two letters of GBK may be one of UTF-8, 猫 and è."""
    if text.isascii():
        return True
    try:
        beyond = [char for char in text.decode() if char > "\x7f"]
    except UnicodeDecodeError:
        return False
    return len(beyond) > 4 or any(char >= "\u0800" for char in beyond)


def _order_of(head: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: that in which there are more line ends, blanks and commas."""
    head = head[: len(head) // 2 * 2]
    counts = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = head.decode(name, "replace")
        counts[name] = sum(map(text.count, "\n ,"))
    little, big = counts["utf-16-le"], counts["utf-16-be"]
    return None if little == big else "utf-16-le" if little > big else "utf-16-be"


def _judge(sample: bytes) -> str | None:
    """The likeliest encoding of bytes that are not UTF-8; None where another reading is nearly as likely."""
    readings = list(_readings(sample))
    if not readings:
        return None
    name, text, confidence = readings[0]
    rival = next((likelihood for _, other, likelihood in readings if other != text), 0.0)
    return name if confidence >= MARGIN * rival and _is_plausible(text) else None


def _readings(sample: bytes) -> Iterator[tuple[str, str, float]]:
    """The encodings in which the sample can be read as a whole, the likeliest first: name, text and likelihood."""
    try:
        import chardet
    except ImportError as error:
        raise ConfigurationError("texts that are not UTF-8 need chardet: pip install 'tuwen[datasets]'") from error
    whole = sample[: sample.rfind(b"\n", 0, SAMPLE) + 1] or sample
    found = chardet.detect_all(
        whole, ignore_threshold=True, encoding_era=chardet.EncodingEra.MODERN_WEB, prefer_superset=True
    )
    for each in found:
        name = each["encoding"]
        if name is None:
            continue
        try:
            text = whole.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        yield codecs.lookup(name).name, text, each["confidence"]


def _is_plausible(text: str) -> bool:
    """Whether characters beyond ASCII are where words have them: Žs within small letters or „ within a word are not."""
    beyond = odd = 0
    before = " "
    for here, after in zip(text, f"{text[1:]} ", strict=True):
        if here > "\x7f":
            beyond += 1
            odd += _is_odd(before, here, after)
        before = here
    return odd <= _ODD * beyond


def _is_odd(before: str, here: str, after: str) -> bool:
    if here.isalpha():
        return here.isupper() and before.islower()
    if before.isalpha() and after.isalpha() and here not in "’‘·–—":
        return before < "\u0370" and after < "\u0370"  # within a word of Latin letters; 、 among Han is none
    return unicodedata.category(here) in ("Cc", "Cn", "Co")
