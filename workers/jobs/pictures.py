"""Generated pictures on their way to the client: encoded, and stored under keys made from their content."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

from PIL import Image

from shared.intake.images import encode_png
from shared.objects.storage import ObjectStore, content_key
from tuwen.engine import Picture, Pixels
from tuwen.jobs import Candidate, GenerateResult, StoredImage
from workers.jobs.correspondence import GeneratedImages

PREVIEW_LENGTH = 8192
PREVIEW_QUALITIES = (75, 50, 25)
"""Qualities of WebP to try, in percent; a preview that is still mostly noise needs the lower ones."""


def store_images(store: ObjectStore, generated: GeneratedImages) -> GenerateResult:
    """Store those images that still have their picture; the result names the best as its image.

    Raises:
        StorageUnavailable
    """
    images = [_store_image(store, each.picture) if each.picture is not None else None for each in generated.images]
    best = generated.images[0]
    if best.picture is None or images[0] is None:
        raise ValueError("the best of the candidates has no picture")
    return GenerateResult(
        image=images[0],
        seed=best.seed,
        score=best.score,
        candidates=tuple(
            Candidate(
                seed=each.seed,
                score=each.score,
                image=image,
                revised_prompt=(each.picture.revised_prompt or None) if each.picture else None,
            )
            for each, image in zip(generated.images, images, strict=True)
            if each.score is not None
        ),
        fell_short=generated.fell_short,
        unknown_words=best.picture.unknown_words,
        revised_prompt=best.picture.revised_prompt or None,
        warnings=best.picture.warnings,
    )


def preview_url(pixels: Pixels) -> str:
    """Encode a picture as a data: URL of at most `PREVIEW_LENGTH` characters, at the best quality that fits."""
    image = Image.fromarray(pixels)
    while True:
        for quality in PREVIEW_QUALITIES:
            file = BytesIO()
            image.save(file, "WEBP", quality=quality)
            url = f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"
            if len(url) <= PREVIEW_LENGTH:
                return url
        image = image.reduce(2)


def _store_image(store: ObjectStore, picture: Picture) -> StoredImage:
    data = encode_png(picture.pixels)
    key = content_key("results", data, ".png")
    store.put(key, data, "image/png")
    height, width, _ = picture.pixels.shape
    return StoredImage(
        key=key, sha256=key.rpartition("/")[2].removesuffix(".png"), width=width, height=height, size=len(data)
    )
