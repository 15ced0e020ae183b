"""Pictures of one size in frames of another."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tuwen.engine import Pixels


def fit(pixels: Pixels, width: int, height: int) -> Pixels:
    """Fit the whole picture, undistorted, into width × height; its border colours fill the rest.

    uint8 (h, w, 3) → (height, width, 3). Reduced by averaging areas, enlarged by Lanczos.
    """
    tall, wide = pixels.shape[:2]
    scale = min(width / wide, height / tall)
    inner = (max(1, min(width, round(wide * scale))), max(1, min(height, round(tall * scale))))
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.LANCZOS
    image = pixels if inner == (wide, tall) else np.asarray(Image.fromarray(pixels).resize(inner, resample))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    right, bottom = width - inner[0] - left, height - inner[1] - top
    return np.ascontiguousarray(np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="edge"))
