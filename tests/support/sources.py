"""Images of sources, as a worker that reads a plan sees them."""

from __future__ import annotations

import json

from workers.datasets.sources import SourceImage


def restore(image: SourceImage) -> SourceImage:
    """The image as it comes out of the line of JSON that a plan has for it."""
    return SourceImage.from_fields(json.loads(image.to_json()))
