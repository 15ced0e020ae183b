"""Decoding what strangers send: every kind of good image, and every kind of bad one."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from shared.intake.images import ImageInfo, decode, encode_png, inspect, pixels
from shared.settings import Settings
from tuwen.errors import ImageCorrupt, ImageRejected, ImageTooLarge, TooManyFrames, UnsupportedFormat

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
SETTINGS = Settings(max_image_pixels=1_000_000, max_image_frames=20)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "avif": "AVIF"}


def corners(mode: str = "RGB") -> Image.Image:
    """48×32: red, green in the upper half, blue, white in the lower."""
    image = Image.new("RGB", (48, 32), WHITE)
    image.paste(RED, (0, 0, 24, 16))
    image.paste(GREEN, (24, 0, 48, 16))
    image.paste(BLUE, (0, 16, 24, 32))
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def in_corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Upper left, upper right, lower left, lower right."""
    width, height = image.size
    points = [(8, 8), (width - 8, 8), (8, height - 8), (width - 8, height - 8)]
    found = [image.getpixel(point) for point in points]
    assert all(isinstance(colour, tuple) for colour in found)
    return [colour for colour in found if isinstance(colour, tuple)]


def assert_near(image: Image.Image, *expected: tuple[int, ...], by: int = 12) -> None:
    assert image.mode == "RGB"
    assert np.abs(np.subtract(in_corners(image), expected)).max() <= by


@pytest.fixture(autouse=True)
def _pillow_is_left_alone() -> Iterator[None]:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    yield
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == before == (False, before[1])


# ── good images ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "kind"), FORMATS.items())
def test_every_format(name: str, kind: str) -> None:
    data = saved(corners(), kind)
    assert inspect(data, SETTINGS) == ImageInfo(name, f"image/{name}", 48, 32, 1)
    assert_near(decode(data, SETTINGS), RED, GREEN, BLUE, WHITE, by=80 if kind == "JPEG" else 40)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("P", "PNG"),
        ("P", "BMP"),
        ("RGB", "TIFF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "JPEG"),
        ("LAB", "TIFF"),
        ("I", "TIFF"),
        ("F", "TIFF"),
        ("I;16", "TIFF"),
        ("I;16", "PNG"),
    ],
)
def test_every_mode(mode: str, kind: str) -> None:
    image = Image.new("L", (48, 32), 255)
    image.paste(0, (0, 0, 24, 32))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "LAB":
        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        converted = ImageCms.profileToProfile(image.convert("RGB"), *profiles, outputMode="LAB")
        assert converted is not None
        image = converted
    else:
        image = image.convert("RGB").convert("L").convert(mode) if mode in "IF" else image.convert("RGB").convert(mode)
    decoded = decode(saved(image, kind), SETTINGS)
    assert_near(decoded, (0, 0, 0), WHITE, (0, 0, 0), WHITE)


def test_sixteen_bits_keep_their_levels() -> None:
    ramp = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
    decoded = pixels(saved(Image.fromarray(ramp), "PNG"), SETTINGS)
    assert np.abs(decoded[..., 0].astype(int) - (ramp / 257).round().astype(int)).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-3.0, 5.0), (0.0, 1e9)])
def test_floating_point_is_brought_to_eight_bits(low: float, high: float) -> None:
    values = np.full((32, 48), high, np.float32)
    values[:, :24] = low
    values[0, 0] = np.nan
    assert_near(decode(saved(Image.fromarray(values), "TIFF"), SETTINGS), (0, 0, 0), WHITE, (0, 0, 0), WHITE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "GIF"])
def test_transparency_lies_on_white(kind: str) -> None:
    image = corners("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 24, 16))
    options = {} if kind in ("TIFF", "GIF", "PNG") else {"quality": 100}
    assert_near(decode(saved(image, kind, **options), SETTINGS), WHITE, GREEN, BLUE, WHITE, by=40)


def test_half_transparency_is_mixed() -> None:
    assert_near(decode(saved(Image.new("RGBA", (48, 32), (255, 0, 0, 128)), "PNG"), SETTINGS), *[(255, 127, 127)] * 4)
    assert_near(decode(saved(Image.new("LA", (48, 32), (0, 128)), "PNG"), SETTINGS), *[(127, 127, 127)] * 4)


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (255, 0, 0)), ("L", 76), ("P", 0)])
def test_one_colour_may_be_transparent(mode: str, clear: object) -> None:
    image = corners("RGB")
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    if mode == "P":
        clear = image.getpixel((1, 1))
    decoded = decode(saved(image, "PNG", transparency=clear), SETTINGS)
    assert in_corners(decoded)[0] == WHITE
    assert in_corners(decoded)[1] != WHITE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(corners(), kind, exif=exif)
    upper_left = {1: RED, 2: GREEN, 3: WHITE, 4: BLUE, 5: RED, 6: BLUE, 7: WHITE, 8: GREEN}[orientation]
    decoded = decode(data, SETTINGS)
    info = inspect(data, SETTINGS)
    assert decoded.size == (info.width, info.height) == ((32, 48) if orientation > 4 else (48, 32))
    assert np.abs(np.subtract(in_corners(decoded)[0], upper_left)).max() <= 80


def test_damaged_metadata_is_no_obstacle() -> None:
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        assert_near(decode(saved(corners(), "JPEG", exif=exif, quality=95), SETTINGS), RED, GREEN, BLUE, WHITE, by=80)
    for profile in (b"rubbish", b"\0" * 200, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:300]):
        assert decode(saved(corners(), "PNG", icc_profile=profile), SETTINGS).tobytes() == corners().tobytes()


def test_colour_profile_is_applied() -> None:
    """The same numbers in a colour space with swapped primaries must come out as other colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = profile.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)
    swapped = bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    decoded = decode(saved(corners(), "PNG", icc_profile=swapped), SETTINGS)
    assert_near(decoded, GREEN, RED, BLUE, WHITE, by=30)
    transparent = corners("RGBA")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    assert_near(decode(saved(transparent, "PNG", icc_profile=swapped), SETTINGS), GREEN, RED, BLUE, WHITE, by=30)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (48, 32), (0, 12 * number, 0)) for number in range(1, 20)]
    data = saved(corners(), kind, save_all=True, append_images=frames)
    assert inspect(data, SETTINGS).frames == 20
    assert_near(decode(data, SETTINGS), RED, GREEN, BLUE, WHITE, by=40)


def test_pixels_are_what_engines_take() -> None:
    array = pixels(saved(corners(), "PNG"), SETTINGS)
    assert array.shape == (32, 48, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array[0, 47].tolist() == list(GREEN)


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (3, 500)])
def test_png_round_trip(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert np.array_equal(pixels(encode_png(noise), SETTINGS), noise)
    assert np.array_equal(pixels(encode_png(noise[:, ::-1]), SETTINGS), noise[:, ::-1])


def test_threads_do_not_disturb_each_other() -> None:
    files = {kind: saved(corners(), kind) for kind in FORMATS.values()}
    expected = {kind: decode(data, SETTINGS).tobytes() for kind, data in files.items()}
    with ThreadPoolExecutor(8) as pool:
        for kind, decoded in zip(
            list(files) * 20, pool.map(lambda data: decode(data, SETTINGS), list(files.values()) * 20), strict=True
        ):
            assert decoded.tobytes() == expected[kind]


# ── bad images ────────────────────────────────────────────────────────────────────────────────────


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    frame = b"!\xf9\x04\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0"
    return b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF of these (tag, type, count, value)."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


def tiff_pages(pages: int) -> bytes:
    """Directories of two entries each, in a chain."""
    size = 2 + 2 * 12 + 4
    chain = [
        struct.pack("<HHHIIHHIII", 2, 256, 3, 1, 1, 257, 3, 1, 1, 8 + size * (page + 1) if page + 1 < pages else 0)
        for page in range(pages)
    ]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(chain)


def scans(number: int) -> bytes:
    """A progressive JPEG whose last scan is there `number` times more."""
    data = saved(corners(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * number + b"\xff\xd9"


TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "png bomb": lambda: png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9))),
    "png of the largest size": lambda: png(2**31 - 1, 2**31 - 1),
    "one pixel too many": lambda: saved(Image.new("1", (1000, 1001)), "PNG"),
    "gif": lambda: saved(Image.new("L", (60_000, 60)), "GIF"),
    "bmp": lambda: saved(corners(), "BMP").replace(struct.pack("<ii", 48, 32), struct.pack("<ii", 60_000, 60_000)),
    "webp": lambda: saved(Image.new("L", (16_000, 70)), "WEBP"),
    "jpeg": lambda: saved(corners(), "JPEG").replace(struct.pack(">HH", 32, 48), struct.pack(">HH", 65_000, 65_000)),
    "tiff": lambda: tiff((256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
    "tiff tile": lambda: tiff(
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 8),
    ),
}  # fmt: skip

TOO_MANY: dict[str, Callable[[], bytes]] = {
    "gif of one more": lambda: gif(21),
    "gif of 10,000": lambda: gif(10_000),
    "gif of a million": lambda: gif(1_000_000),
    "apng": lambda: png(1, 1, chunk(b"acTL", struct.pack(">II", 100_000, 0)), chunk(b"IDAT", zlib.compress(bytes(2)))),
    "tiff": lambda: tiff_pages(200_000),
    "webp": lambda: saved(
        corners(), "WEBP", save_all=True, append_images=[Image.new("L", (48, 32), 8 * i) for i in range(30)]
    ),
}

UNSUPPORTED: dict[str, Callable[[], bytes]] = {
    "fits": lambda: b"SIMPLE  =                    T" + b" " * 2850,
    "eps": lambda: saved(corners(), "EPS"),
    "psd": lambda: b"8BPS\0\x01" + bytes(100),
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "pdf": lambda: saved(corners(), "PDF"),
    "ico": lambda: saved(corners(), "ICO"),
    "ppm": lambda: saved(corners(), "PPM"),
    "jpeg 2000": lambda: saved(corners(), "JPEG2000"),
    "heic": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "mp4": lambda: b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100),
    "text": lambda: "一只黑色的猫".encode(),
    "zip": lambda: b"PK\x03\x04" + bytes(100),
    "riff that is sound": lambda: b"RIFF\0\0\0\0WAVEfmt " + bytes(100),
    "nothing but zeros": lambda: bytes(1000),
}

CORRUPT: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "png signature only": lambda: b"\x89PNG\r\n\x1a\n",
    "png of no width": lambda: png(0, 1, chunk(b"IDAT", zlib.compress(b""))),
    "png without pixels": lambda: png(10, 10),
    "gif without frames": lambda: gif(0),
    "jpeg without a scan": lambda: saved(corners(), "JPEG").partition(b"\xff\xda")[0] + b"\xff\xd9",
    "jpeg of a thousand scans": lambda: scans(1000),
    "tiff of nothing": lambda: tiff(),
    "tiff that begins nowhere": lambda: b"II*\0\xff\xff\xff\x7f",
    "tiff with absurd tags": lambda: tiff(*[(tag, 7, 2**31, 0) for tag in range(1000, 60_000)]),
    "tiff that goes on beyond its end": lambda: tiff((256, 3, 1, 1), (257, 3, 1, 1))[:-4] + b"\xff\xff\xff\x7f",
    "svg named png": lambda: b"\x89PNG\r\n\x1a\n<svg/>",
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large(make: Callable[[], bytes]) -> None:
    _rejected(make(), ImageTooLarge)


@pytest.mark.parametrize("make", TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_frames(make: Callable[[], bytes]) -> None:
    _rejected(make(), TooManyFrames)


def of_many_words(kind: str) -> bytes:
    """An image that carries two million bytes of words in the way of its format."""
    words = b"http://ns.adobe.com/xap/1.0/\0" + bytes(60_000)
    if kind == "JPEG":
        segment = b"\xff\xe1" + struct.pack(">H", len(words) + 2) + words
        data = saved(corners(), "JPEG")
        return data[:2] + segment * 34 + data[2:]
    if kind == "GIF":
        block = b"\x21\xfe" + (b"\xff" + bytes(255)) * 8000 + b"\0"
        data = saved(corners(), "GIF")
        start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
        return data[:start] + block + data[start:]
    if kind == "TIFF":
        return saved(corners(), "TIFF", tiffinfo={700: bytes(2_000_000)})
    return saved(corners(), kind, xmp=bytes(2_000_000))


WORDY: dict[str, Callable[[], bytes]] = {
    "png text bomb": lambda: png(
        1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000), 9)), chunk(b"IDAT", zlib.compress(bytes(2)))
    ),
    "png of many text bombs": lambda: png(
        1,
        1,
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)) * 100,
        chunk(b"IDAT", zlib.compress(bytes(2))),
    ),
    "png bomb of international text": lambda: png(
        1,
        1,
        chunk(b"iTXt", b"a\0\1\0zh\0\0" + zlib.compress(bytes(10_000_000), 9)),
        chunk(b"IDAT", zlib.compress(bytes(2))),
    ),
    "png bomb after the pixels": lambda: png(
        1, 1, chunk(b"IDAT", zlib.compress(bytes(2))), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000), 9))
    ),
    "png profile bomb": lambda: png(
        1, 1, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10_000_000), 9)), chunk(b"IDAT", zlib.compress(bytes(2)))
    ),
    "png of plain text": lambda: png(1, 1, chunk(b"tEXt", b"a\0" + bytes(2_000_000)), chunk(b"IDAT", b"")),
    "png of unknown chunks": lambda: png(1, 1, chunk(b"abCd", bytes(2_000_000)), chunk(b"IDAT", b"")),
    **{
        f"{kind} of many words": lambda kind=kind: of_many_words(kind)
        for kind in ("JPEG", "GIF", "TIFF", "WEBP", "AVIF")
    },
    "tiff that is read again and again": lambda: tiff(*[(tag, 7, 10_000, 0) for tag in range(1000, 1900)]),
    "jpeg of a huge profile": lambda: saved(corners(), "JPEG", icc_profile=bytes(5_000_000)),
}


@pytest.mark.parametrize("make", WORDY.values(), ids=WORDY)
def test_metadata_is_bounded(make: Callable[[], bytes]) -> None:
    """It is refused before it is stored or decoded, and the sentence says what to do."""
    with pytest.raises(ImageTooLarge, match="exiftool"):
        inspect(make(), SETTINGS)


def test_a_bomb_of_metadata_is_not_set_off() -> None:
    """Half a gigabyte of text in half a megabyte: refused in little more memory than the bound."""
    bomb = zlib.compressobj(9)
    packed = b"".join([*(bomb.compress(bytes(2**20)) for _ in range(512)), bomb.flush()])
    data = png(1, 1, chunk(b"zTXt", b"a\0\0" + packed), chunk(b"IDAT", zlib.compress(bytes(2))))
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            inspect(data, SETTINGS)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_metadata_within_the_bound_is_no_obstacle(kind: str) -> None:
    data = saved(corners(), kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", icc_profile=bytes(600_000))
    assert inspect(data, SETTINGS).width == 48


@pytest.mark.parametrize("make", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported(make: Callable[[], bytes]) -> None:
    _rejected(make(), UnsupportedFormat)


@pytest.mark.parametrize("make", CORRUPT.values(), ids=CORRUPT)
def test_corrupt(make: Callable[[], bytes]) -> None:
    with pytest.raises(ImageCorrupt):
        decode(make(), SETTINGS)


@pytest.mark.parametrize("kind", FORMATS.values())
def test_truncated(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageCorrupt):
            decode(data[: int(len(data) * share)], SETTINGS)


def _rejected(data: bytes, kind: type[ImageRejected]) -> None:
    for function in (inspect, decode, pixels):
        with pytest.raises(kind) as rejection:
            function(data, SETTINGS)
        assert type(rejection.value) is kind
        assert not rejection.value.retryable


# ── anything at all ───────────────────────────────────────────────────────────────────────────────


def _is_decoded_or_rejected(data: bytes) -> None:
    try:
        info = inspect(data, SETTINGS)
    except ImageRejected:
        info = None
    try:
        decoded = decode(data, SETTINGS)
    except ImageRejected:
        return
    assert info is not None
    assert decoded.mode == "RGB"
    assert decoded.size == (info.width, info.height)
    assert info.width * info.height <= SETTINGS.max_image_pixels


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0+", b""]),
       st.binary(max_size=300))  # fmt: skip
def test_random_bytes(signature: bytes, data: bytes) -> None:
    _is_decoded_or_rejected(signature + data)


def _specimens() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = corners().resize((12, 8))
    frames = [Image.new("RGB", (12, 8), (0, 90 * number, 0)) for number in range(3)]
    files = [saved(small, kind) for kind in FORMATS.values()]
    files += [saved(small, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [saved(small, kind, save_all=True, append_images=frames) for kind in ("GIF", "PNG", "WEBP", "TIFF")]
    files += [saved(small.convert("RGBA"), "PNG"), saved(small.quantize(4), "PNG", transparency=1)]
    files += [saved(small.convert("CMYK"), "JPEG"), saved(small, "JPEG", progressive=True)]
    files += [saved(small, "TIFF", compression=method) for method in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [*files, saved(small, "PNG", icc_profile=profile), saved(small, "JPEG", icc_profile=profile)]


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(_SPECIMENS)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 8))
        # Replace, insert and cut out; the extreme values are where sizes and offsets go wrong.
        data[start : start + length] = draw(
            st.binary(max_size=8) | st.sampled_from([b"\xff" * length, bytes(length), b"\x7f" + b"\xff" * 3])
        )
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


_SPECIMENS = _specimens()


@effort(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(_damaged())
def test_damaged_files(data: bytes) -> None:
    _is_decoded_or_rejected(data)


def test_models_see_large_images_reduced() -> None:
    settings = Settings(model_image_side=100)
    wide = BytesIO()
    Image.new("RGB", (400, 200), "red").save(wide, "PNG")
    seen = pixels(wide.getvalue(), settings)
    assert seen.shape == (50, 100, 3)
    assert (seen == (255, 0, 0)).all()
    small = BytesIO()
    Image.new("RGB", (40, 20), "red").save(small, "PNG")
    assert pixels(small.getvalue(), settings).shape == (20, 40, 3)
