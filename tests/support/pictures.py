"""Small pictures for tests, each of its own."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image


def picture(number: int = 0, width: int = 16, height: int = 12, kind: str = "PNG") -> bytes:
    """An image file; different numbers look different."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = BytesIO()
    image.save(file, kind)
    return file.getvalue()
