"""Decoding untrusted images, and encoding ours.

The order matters: the signature names the format, the header names the size and frames, and only images within the
limits are decoded. Every error of a decoder becomes an `ImageRejected`; Pillow's global switches are not changed.
All functions are thread-safe, and Pillow releases the GIL in the parts that take the time.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from struct import Struct

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from shared.intake.image_metadata import gif_colours, require_little_info, require_little_metadata
from shared.settings import Settings
from tuwen.engine import Pixels
from tuwen.errors import ImageCorrupt, ImageRejected, ImageTooLarge, TooManyFrames, UnsupportedFormat

# These plugins register themselves when imported; otherwise the first image would load all forty plugins of Pillow.
_PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
# Pillow warns of every damaged tag by its number, and Python remembers every warning forever.
warnings.filterwarnings("ignore", module=r"PIL\.")

_SIGNATURES: dict[str, Callable[[bytes], bool]] = {
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "WEBP": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
    "GIF": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    "BMP": lambda head: head.startswith(b"BM"),
    "TIFF": lambda head: head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "AVIF": lambda head: head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# Decoding each scan of a progressive JPEG visits the whole image, although the scan may have only a few bytes. Encoders
# write about ten scans; the marker may also occur by chance in the metadata.
_MOST_SCANS = 100
# Pillow reads and stores each tag of a TIFF, which takes 50 µs per tag; cameras write about a hundred.
_MOST_TAGS = 1000


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Information from an image's header; `width` and `height` are those of the decoded image, in pixels."""

    format: str
    """Format in lower case, as in a file's suffix: png, jpeg, webp, gif, bmp, tiff, avif."""
    media_type: str
    width: int
    height: int
    frames: int


def inspect(data: bytes, settings: Settings) -> ImageInfo:
    """Identify an image and check it against the limits, without decoding it.

    Raises:
        UnsupportedFormat, ImageTooLarge, TooManyFrames, ImageCorrupt
    """
    with _translate_errors():
        return _open(data, settings)[1]


def decode(data: bytes, settings: Settings) -> Image.Image:
    """Decode an image as people see it: RGB, 8 bits, upright, sRGB, on white, the first frame of an animation.

    Raises:
        UnsupportedFormat, ImageTooLarge, TooManyFrames, ImageCorrupt
    """
    with _translate_errors():
        image, info = _open(data, settings)
        turn = _TURNS.get(_orientation(image))
        image.load()
        rgb = _rgb(image)
        upright = rgb if turn is None else rgb.transpose(turn)
        if upright.size != (info.width, info.height):
            raise ImageCorrupt("the size of the image differs from that in its header")
        return upright


def pixels(data: bytes, settings: Settings) -> Pixels:
    """Decode an image to a new array, whose longer side has at most `settings.model_image_side` pixels.

    No model uses more, and a photograph of 50 megapixels would be sent to the engine as 150 MB.
    """
    return reduce_image(decode(data, settings), settings)


def reduce_image(image: Image.Image, settings: Settings) -> Pixels:
    """Reduce a decoded image, in place, to the size for models, and return its pixels."""
    side = settings.model_image_side
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(image)


def encode_png(pixels: Pixels) -> bytes:
    """A PNG file, written for speed.

    Run-length matching (Z_RLE) skips the search for repeats, which photographs do not have: measured on a noisy
    512×512 image, 54 ms and 467 kB where zlib's level 1 took 60 ms and 521 kB, level 6 97 ms and 467 kB.
    """
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_type=zlib.Z_RLE)
    return file.getvalue()


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except ImageRejected:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageTooLarge("the image has too many pixels") from error
    except Exception as error:
        # Decoders fail on damaged files with any exception: OSError, SyntaxError, struct.error, KeyError…
        raise ImageCorrupt("the image is damaged or incomplete") from error


def _open(data: bytes, settings: Settings) -> tuple[Image.Image, ImageInfo]:
    """Open an image without decoding it, and check all limits."""
    name = _format(data)
    if name == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise ImageCorrupt("the image has too many scans")
    counted = _COUNTERS[name](data, settings.max_image_frames + 1) if name in _COUNTERS else 0
    _require_frames(counted, settings)
    require_little_metadata(data, name, settings.max_image_metadata)
    image = Image.open(BytesIO(data), formats=(name,))
    require_little_info(image.info, settings.max_image_metadata)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageCorrupt("the image has no pixels")
    _require_area(width, height, settings)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _require_small_tiles(image, settings)
    frames = counted or getattr(image, "n_frames", 1)
    _require_frames(frames, settings)
    if _orientation(image) in _SIDEWAYS:
        width, height = height, width
    return image, ImageInfo(name.lower(), f"image/{name.lower()}", width, height, frames)


def _format(data: bytes) -> str:
    head = data[:64]
    for name, fits in _SIGNATURES.items():
        if fits(head):
            return name
    if not data:
        raise ImageCorrupt("the image is empty")
    raise UnsupportedFormat(f"this image format is not supported; use {', '.join(_SIGNATURES)}")


def _require_area(width: int, height: int, settings: Settings) -> None:
    if width * height > settings.max_image_pixels:
        raise ImageTooLarge(f"{width}×{height} pixels are more than the {settings.max_image_pixels} allowed")


def _require_frames(frames: int, settings: Settings) -> None:
    if frames > settings.max_image_frames:
        raise TooManyFrames(f"the image has more than {settings.max_image_frames} frames")


def _require_small_tiles(image: TiffImagePlugin.TiffImageFile, settings: Settings) -> None:
    # A tile is always decoded completely, however little of it lies within the image.
    width, height = (image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    _require_area(int(width), int(height), settings)


def _gif_frames(data: bytes, enough: int) -> int:
    """Count image descriptors, up to `enough`, by skipping over the blocks (GIF89a specification, section 12)."""
    position = 13 + gif_colours(data[10])
    frames = 0
    while frames < enough and position < len(data):
        kind = data[position]
        if kind == 0x2C:  # image descriptor, its colours, the code size, then the pixels
            frames += 1
            position += 11 + gif_colours(data[position + 9])
        elif kind == 0x21:  # extension
            position += 2
        else:
            break  # the trailer, or damage for the decoder to find
        while size := data[position]:
            position += 1 + size
        position += 1
    return frames


def _tiff_frames(data: bytes, enough: int) -> int:
    """Count directories, up to `enough`, by following the chain (TIFF 6.0, section 2; BigTIFF has wider fields)."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    number, pointer = (Struct(order + code) for code in ("QQ" if big else "HI"))
    entry, first = (20, 8) if big else (12, 4)
    (position,) = pointer.unpack_from(data, first)
    frames = 0
    while position and frames < enough:
        (entries,) = number.unpack_from(data, position)
        if entries > _MOST_TAGS:
            raise ImageCorrupt("the image has too many tags")
        (position,) = pointer.unpack_from(data, position + number.size + entry * entries)
        frames += 1
    return frames


# Counters for formats where Pillow would read the whole file to count frames, even a million of them.
_COUNTERS = {"GIF": _gif_frames, "TIFF": _tiff_frames}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1…8. Pillow rotates TIFF by itself; asking a PNG without EXIF would decode it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) or "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - as for decoders above, but damaged metadata is no reason to refuse an image
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")
    image = _srgb(image)
    if image.mode != "RGBA":
        return image.convert("RGB")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=image.getchannel("A"))
    return on_white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey levels of 16 or 32 bits or floating point, with the smallest usual white point above them."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    black, white = float(values.min()), float(values.max())
    usual = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    if black >= 0 and white <= usual[-1]:
        black, white = 0.0, next(point for point in usual if white <= point)
    levels = (values - black) * (255.0 / max(white - black, 1e-30))
    return Image.fromarray((levels + 0.5).astype(np.uint8))


def _srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB by the image's colour profile, when it has a valid one that differs from sRGB."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image  # a damaged profile is no reason to refuse the image
    return converted or image
