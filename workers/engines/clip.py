"""Recognition without training, and match, with any model of two encoders: CLIP, SigLIP and their kin.

    clip:REPO_OR_FOLDER[@COMMIT][?OPTION=VALUE&…]

    labels               what recognition looks for; see `workers.engines.labels`
    template             sentence around a label: a photo of a {}
    threshold            least confidence of a recognised object, 0.3 when not given
    midpoint, steepness  of the curve from a cosine to a score, for models of CLIP's kind
    dtype                float32|float16|bfloat16
    batch                most images of one batch; found by measuring where it is not given
    pinned=1             never evicted for another model

SigLIP learnt to say of each pair alone how probable it is (Zhai et al., 2023), and its score is that. CLIP learnt only
which of many texts fits best (Radford et al., 2021): its cosine of a fitting pair lies about 0.3, of a strange one
about 0.15, so the score is a logistic curve between the two: good for order, a probability only once `midpoint` and
`steepness` were fitted on pairs of one's own. Neither binds attributes to objects well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotImageClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tuwen.engine import Item, MatchItem, Pixels, RecognizeItem, Run
from tuwen.errors import EngineError, EngineStartFailed, TuwenError
from tuwen.jobs import Kind, MatchResult, RecognizedObject, RecognizeResult
from workers.engines.checkpoint import Checkpoint
from workers.engines.labels import Label, read_labels
from workers.engines.placement import BatchSize, UnobservedRun, number, require_known_options, weight_bytes
from workers.engines.processors import architecture, model_of, processor_of
from workers.engines.prompts import cut_warning, unread

OPTIONS = ("labels", "template", "threshold", "midpoint", "steepness")
MIDPOINT, STEEPNESS = 0.22, 40.0
"""Cosine that scores one half, and how fast the score turns there: fitting pairs at 0.3 score 0.96, strange ones at
0.15 score 0.06. Typical of the published CLIP models, not fitted to any of them."""
MOST_OBJECTS = 5

_BROKEN = EngineError(
    "the model answered with not-a-number: its numbers overflow at this precision, or its weights are broken; "
    "try dtype=float32 among its options"
)


class TwoEncoders:
    """A checkpoint's image and text encoders, whose outputs of unit length meet in a dot product."""

    def __init__(self, device: str, checkpoint: Checkpoint):
        """
        Raises:
            EngineStartFailed: not a model of two encoders.
        """
        options = checkpoint.options
        require_known_options(options, OPTIONS)
        kind = architecture(checkpoint)
        if kind not in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES or kind.startswith("blip"):
            raise EngineStartFailed(f"a {kind} model does not compare images and texts as CLIP and SigLIP do")
        self.device = device
        self.model = model_of(AutoModelForZeroShotImageClassification, checkpoint, device)
        self.processor = processor_of(checkpoint)
        config = self.model.config
        self.longest = min(config.text_config.max_position_embeddings, self.processor.tokenizer.model_max_length)
        self.sigmoid = kind.startswith("siglip")
        self.padding = "max_length" if self.sigmoid else True  # SigLIP never saw shorter ones
        self.midpoint = number(options, "midpoint", MIDPOINT)
        self.steepness = number(options, "steepness", STEEPNESS)

    @torch.inference_mode()
    def images(self, pixels: Sequence[Pixels]) -> Tensor:
        """Embed uint8 pictures of any size as (B, D), of unit length."""
        inputs = self.processor(images=[Image.fromarray(each) for each in pixels], return_tensors="pt")
        return _unit(self.model.get_image_features(**inputs.to(self.device, self.model.dtype)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → (B, D), of unit length. What the encoder cannot take is cut off."""
        inputs = self.processor(
            text=list(texts), padding=self.padding, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        return _unit(self.model.get_text_features(**inputs.to(self.device)))

    def logits(self, cosines: Tensor) -> Tensor:
        """Scale cosines as in training: for a softmax over the texts of an image, or for SigLIP's sigmoid."""
        scale: Tensor = self.model.logit_scale.exp().float()
        bias = getattr(self.model, "logit_bias", None)
        return cosines * scale if bias is None else cosines * scale + bias.float()

    def score(self, cosines: Tensor) -> Tensor:
        """The probability that each pair fits, in [0, 1]."""
        evidence = self.logits(cosines) if self.sigmoid else (cosines - self.midpoint) * self.steepness
        return evidence.sigmoid()


class _ClipEngine:
    """Base of both engines: the two encoders, and a size of batch that is measured with the engine's own example."""

    layout: ClassVar = "model"

    def __init__(self, device: str, checkpoint: Checkpoint):
        self.revision = checkpoint.revision
        self.encoders = TwoEncoders(device, checkpoint)
        self.batch = BatchSize.of(device, checkpoint.options, start=32, most=1024)

    def example(self) -> Item:
        raise NotImplementedError

    def run(self, items: Sequence[Item], run: Run) -> Sequence[MatchResult | RecognizeResult | TuwenError]:
        raise NotImplementedError

    def weights(self) -> int:
        return weight_bytes([self.encoders.model])

    def calibrate(self, room: int) -> None:
        self.batch.measure(lambda count: self.run([self.example()] * count, UnobservedRun()), room)

    def batch_limit(self, item: Item) -> int:  # noqa: ARG002
        return self.batch.limit()


class ClipMatcher(_ClipEngine):
    """Scores pairs by the cosine of their encodings."""

    kind: ClassVar = Kind.MATCH

    def example(self) -> Item:
        return MatchItem(_grey(), "a black cat jumping on the grass")

    def run(self, items: Sequence[Item], run: Run) -> Sequence[MatchResult | TuwenError]:
        """Score all pairs in one pass of each encoder; warns of texts that were cut."""
        wanted = [item for item in items if isinstance(item, MatchItem)]
        images = self.encoders.images([item.pixels for item in wanted])
        texts = self.encoders.texts([item.text for item in wanted])
        scores = self.encoders.score((images * texts).sum(dim=-1)).tolist()
        run.progress(1, 1)
        return [self._result(item, score) for item, score in zip(wanted, scores, strict=True)]

    def _result(self, item: MatchItem, score: float) -> MatchResult | TuwenError:
        if not math.isfinite(score):
            return _BROKEN
        rest = unread(self.encoders.processor.tokenizer, item.text, self.encoders.longest)
        warnings = (cut_warning("text", rest, self.encoders.longest),) if rest else ()
        return MatchResult(score=score, warnings=warnings)


class ClipRecognizer(_ClipEngine):
    """Finds the objects first, then of each found one which attribute and action fit it best."""

    kind: ClassVar = Kind.RECOGNIZE

    def __init__(self, device: str, checkpoint: Checkpoint):
        super().__init__(device, checkpoint)
        self.labels = read_labels(checkpoint.options.get("labels"))
        self.template = checkpoint.options.get("template", "a photo of a {}")
        if "{}" not in self.template:
            raise EngineStartFailed(f"template={self.template}: it has to hold {{}}, where the label goes")
        self.threshold = number(checkpoint.options, "threshold", 0.3)
        self.objects = self._encode([f"{each.en}" for each in self.labels.objects])
        self.scenes = self._encode([f"scene of {each.en}" for each in self.labels.scenes])
        # For each object its own sentences: "a photo of a black cat".
        self.attributes = {
            name: self._encode_for_objects("{label} {object}", values)
            for name, values in self.labels.attributes.items()
        }
        self.actions = self._encode_for_objects("{object} {label}", self.labels.actions)

    def example(self) -> Item:
        return RecognizeItem(_grey())

    @torch.inference_mode()
    def run(self, items: Sequence[Item], run: Run) -> Sequence[RecognizeResult | TuwenError]:
        """Encode all images in one pass, and compare each with the encoded labels."""
        images = self.encoders.images([item.pixels for item in items if isinstance(item, RecognizeItem)])
        run.progress(1, 1)
        return [self._result(image) for image in images]

    def _encode(self, phrases: list[str]) -> Tensor | None:
        """Encode phrases, once because the labels never change: (labels, D)."""
        return self.encoders.texts([self.template.replace("{}", phrase) for phrase in phrases]) if phrases else None

    def _encode_for_objects(self, phrase: str, values: tuple[Label, ...]) -> list[Tensor | None]:
        return [
            self._encode([phrase.format(object=each.en, label=value.en) for value in values])
            for each in self.labels.objects
        ]

    def _shares(self, image: Tensor, known: Tensor) -> Tensor:
        """The probabilities of the labels, which sum up to 1."""
        return self.encoders.logits(known @ image).softmax(dim=-1)

    def _presence(self, image: Tensor) -> Tensor:
        """The probability that each object is there. CLIP only compares objects, so shares have to do for it."""
        assert self.objects is not None  # noqa: S101  # there is at least one label
        if self.encoders.sigmoid:
            return self.encoders.score(self.objects @ image)
        return self._shares(image, self.objects)

    def _result(self, image: Tensor) -> RecognizeResult | TuwenError:
        presence = self._presence(image)
        if not torch.isfinite(presence).all():
            return _BROKEN
        order = presence.argsort(descending=True)[:MOST_OBJECTS].tolist()
        found = [index for index in order if presence[index] >= self.threshold]
        scene, scene_share = self._best(image, self.scenes, self.labels.scenes)
        return RecognizeResult(
            objects=tuple(self._object(image, index, float(presence[index])) for index in found),
            scene=scene.en if scene else None,
            scene_zh=scene.zh if scene else None,
            confidence=min(1.0, float(presence[found or order[:1]].min()) * scene_share),
            out_of_domain=not found,
        )

    def _object(self, image: Tensor, index: int, confidence: float) -> RecognizedObject:
        label = self.labels.objects[index]
        best = {
            name: value
            for name, known in self.attributes.items()
            if (value := self._best(image, known[index], self.labels.attributes[name])[0]) is not None
        }
        action, _ = self._best(image, self.actions[index], self.labels.actions)
        return RecognizedObject(
            name=label.en,
            name_zh=label.zh,
            confidence=min(1.0, confidence),
            attributes={name: value.en for name, value in best.items()},
            attributes_zh={name: value.zh for name, value in best.items()},
            action=action.en if action else None,
            action_zh=action.zh if action else None,
        )

    def _best(self, image: Tensor, known: Tensor | None, values: tuple[Label, ...]) -> tuple[Label | None, float]:
        if known is None:
            return None, 1.0
        share, index = self._shares(image, known).max(dim=-1)
        return values[int(index)], float(share)


def _unit(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    pooled = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(pooled.float(), dim=-1)


def _grey() -> Pixels:
    return np.full((224, 224, 3), 128, np.uint8)
