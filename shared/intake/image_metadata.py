"""The size of what an image carries besides its pixels: texts, EXIF, XMP, colour profiles and the like.

Nothing here is needed to see the image, and it is kept as long as the image is. So there is little of it in an image
that is accepted. It is measured in the bytes of the file, before any decoder sees them. PNG may compress texts and
profiles, and a few kilobytes may stand for gigabytes: they are measured as they are when decompressed, and decompressed
no further than the bound.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from struct import Struct, error, unpack_from
from typing import Any

from tuwen.errors import ImageTooLarge

LARGEST_PROFILE = 4 * 2**20
"""Bytes of a colour profile; those of printing presses have up to three million."""

_DECODED_BY_PNG = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"))
_DECODED_BY_WEBP = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"))
# TIFF 6.0: sizes of the types of values, and the tags that say where the pixels are, which grow with the image.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_PIXELS = frozenset((273, 279, 320, 324, 325, 330))
_TIFF_PROFILE = 34675
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers of JPEG that no length follows."""

Part = tuple[bool, int]
"""Whether it belongs to a colour profile, and its bytes."""


def require_little_metadata(data: bytes, kind: str, most: int) -> None:
    """Refuse an image that carries much metadata, as it is when decompressed. What is damaged, the decoder finds.

    Args:
        kind: Pillow's name of the format, which the signature has shown.
        most: bytes of everything but the colour profile, whose bound is `LARGEST_PROFILE`.

    Raises:
        ImageTooLarge: there is more.
    """
    measure = _MEASURES.get(kind)
    if measure is not None:
        with suppress(error, IndexError, zlib.error):
            _add_up(measure(data, max(most, LARGEST_PROFILE)), most)


def require_little_info(info: dict[str | tuple[int, int], Any], most: int) -> None:
    """Refuse an image by what its decoder has found in it: in AVIF only a decoder can tell metadata from pixels.

    Raises:
        ImageTooLarge: as above.
    """
    _add_up(((name == "icc_profile", len(it)) for name, it in info.items() if isinstance(it, (bytes, str))), most)


def _add_up(parts: Iterator[Part], most: int) -> None:
    profile = others = 0
    for of_profile, size in parts:
        if of_profile:
            profile += size
        else:
            others += size
        if others > most:
            raise ImageTooLarge(f"the image carries more than {most} bytes of texts, EXIF or XMP; {_REMEDY}")
        if profile > LARGEST_PROFILE:
            raise ImageTooLarge(f"the image has a colour profile of more than {LARGEST_PROFILE} bytes; {_REMEDY}")


_REMEDY = "remove it, for example with: exiftool -all= FILE"


def _png(data: bytes, most: int) -> Iterator[Part]:
    """Chunks that are no pixels (PNG, third edition, section 5)."""
    position = 8
    while position + 12 <= len(data):
        (length,) = unpack_from(">I", data, position)
        name = data[position + 4 : position + 8]
        if name not in _DECODED_BY_PNG:
            content = data[position + 8 : position + 8 + length]
            yield name == b"iCCP", max(len(content), _decompressed(name, content, most))
        position += 12 + length


def _decompressed(name: bytes, content: bytes, most: int) -> int:
    """Bytes of what a chunk has compressed, at most one more than `most`."""
    _, _, rest = content.partition(b"\0")
    if name in (b"zTXt", b"iCCP"):
        packed = rest[1:]
    elif name == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return 0
    return len(zlib.decompressobj().decompress(packed, most + 1))


def _jpeg(data: bytes, _: int) -> Iterator[Part]:
    """Application segments and comments (ITU-T T.81, section B.1). What follows the image is none of it: telephones put
    a second picture there, or a video."""
    position = 2
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0:  # pixels: 0 says that the byte 0xFF is one of them
            position = data.find(b"\xff", position + 1)
            if position < 0:
                return
        elif marker == 0xFF:
            position += 1
        elif marker in _JPEG_ALONE:
            position += 2
        elif marker == 0xD9:
            return
        else:
            (length,) = unpack_from(">H", data, position + 2)
            if 0xE0 <= marker <= 0xEF or marker == 0xFE:
                yield data.startswith(b"ICC_PROFILE\0", position + 4), length
            position += 2 + length


def _webp(data: bytes, _: int) -> Iterator[Part]:
    """Chunks that are no pixels (RFC 9649, section 2.7)."""
    position = 12
    while position + 8 <= len(data):
        name, (length,) = data[position : position + 4], unpack_from("<I", data, position + 4)
        if name not in _DECODED_BY_WEBP:
            yield name == b"ICCP", min(length, len(data) - position)
        position += 8 + length + length % 2


def _gif(data: bytes, _: int) -> Iterator[Part]:
    """Comments, texts and what applications add (GIF89a, sections 23 to 26)."""
    position = 13 + gif_colours(data[10])
    while position < len(data):
        kind = data[position]
        if kind not in (0x21, 0x2C):
            return
        position += 2 if kind == 0x21 else 11 + gif_colours(data[position + 9])
        begin = position
        while size := data[position]:
            position += 1 + size
        position += 1
        if kind == 0x21:
            yield False, position - begin


def gif_colours(flags: int) -> int:
    """Bytes of the colour table that follows a descriptor with these flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _tiff(data: bytes, _: int) -> Iterator[Part]:
    """Tags of the first directory, other than those that say where the pixels are (TIFF 6.0, section 2)."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    pointer, number, entry = (Struct(order + code) for code in (("Q", "Q", "HHQ") if big else ("I", "H", "HHI")))
    (position,) = pointer.unpack_from(data, 8 if big else 4)
    (entries,) = number.unpack_from(data, position)
    for index in range(entries):
        tag, kind, count = entry.unpack_from(data, position + number.size + index * (20 if big else 12))
        size = count * _TIFF_SIZES.get(kind, 1)
        # A tag that is longer than the file is damage.
        if tag not in _TIFF_PIXELS and size <= len(data):
            yield tag == _TIFF_PROFILE, size


_MEASURES: dict[str, Callable[[bytes, int], Iterator[Part]]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "GIF": _gif,
    "TIFF": _tiff,
}
