"""Filters say which images stay in a data set; each dropped image is listed with the reason.

Size and shape are checked before a model sees the image, the models' answers afterwards.
"""

from __future__ import annotations

from tuwen.annotations import Annotation, Caption, Drop, DropReason, Recognition
from tuwen.datasets import Filters


def drop_before_models(filters: Filters, known: Annotation) -> Drop | None:
    """Return why the image is not worth a model's time; None when it is, or when its size is not known."""
    if not known.width or not known.height:
        return None
    shorter, longer = sorted((known.width, known.height))
    size = f"{known.width}×{known.height} pixels"
    if filters.min_side is not None and shorter < filters.min_side:
        return Drop(reason=DropReason.TOO_SMALL, detail=f"{size}, less than {filters.min_side} on a side")
    if filters.max_side is not None and longer > filters.max_side:
        return Drop(reason=DropReason.TOO_LARGE, detail=f"{size}, more than {filters.max_side} on a side")
    if filters.max_aspect is not None and longer > filters.max_aspect * shorter:
        return Drop(reason=DropReason.ASPECT, detail=f"{size}, more than {filters.max_aspect:g} to 1")
    return None


def drop_after_models(filters: Filters, annotation: Annotation) -> Drop | None:
    """Return why the models' answers keep the image out; None when it stays."""
    scores = [caption.score for caption in annotation.captions if caption.score is not None]
    if annotation.existing_score is not None:
        scores.append(annotation.existing_score)
    if filters.min_score is not None and scores and min(scores) < filters.min_score:
        return Drop(reason=DropReason.LOW_SCORE, detail=f"scores {min(scores):.3f}, less than {filters.min_score:g}")
    said: list[Caption | Recognition] = [*annotation.captions]
    if annotation.recognition is not None:
        said.append(annotation.recognition)
    if filters.min_confidence is not None and said:
        least = min(each.confidence for each in said)
        if least < filters.min_confidence:
            detail = f"confidence {least:.3f}, less than {filters.min_confidence:g}"
            return Drop(reason=DropReason.LOW_CONFIDENCE, detail=detail)
    if filters.in_domain and any(each.out_of_domain for each in said):
        return Drop(reason=DropReason.OUT_OF_DOMAIN, detail="unlike anything that the model learnt from")
    return None
