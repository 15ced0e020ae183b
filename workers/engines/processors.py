"""Models of transformers, and the processors of their inputs. None of them runs a checkpoint's code."""

from __future__ import annotations

import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.utils import is_torchvision_available

from tuwen.errors import EngineStartFailed
from workers.engines.checkpoint import Checkpoint
from workers.engines.placement import precision

# Our own results say what was cut, and the engine process tells how far loading is.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


AutoModel = type[AutoModelForImageTextToText] | type[AutoModelForZeroShotImageClassification]


class _WithoutVideos:
    """Goes before a processor class and leaves out its video part, which alone needs torchvision and gets no input."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]  # of the class after

    def __init__(
        self,
        image_processor: object = None,
        tokenizer: object = None,
        chat_template: str | None = None,
        **_: object,
    ):
        parts = {"image_processor": image_processor, "tokenizer": tokenizer, "chat_template": chat_template}
        super().__init__(video_processor=None, **parts)  # type: ignore[call-arg]  # of the class after

    def check_argument_for_proper_class(self, name: str, argument: object) -> object:
        if argument is None:
            return None
        return super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]  # of the class after


def images_only(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return the class itself or, where torchvision is missing, one that works without it."""
    if is_torchvision_available() or "video_processor" not in processor.get_attributes():
        return processor
    return type(processor.__name__, (_WithoutVideos, processor), {})


def architecture(checkpoint: Checkpoint) -> str:
    """Return transformers' name of the model's family, such as `qwen2_vl`.

    Raises:
        EngineStartFailed: transformers has no such family.
    """
    try:
        return str(AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False).model_type)
    except (ValueError, KeyError) as error:
        called = checkpoint.config.get("model_type", "of no known type")
        if "auto_map" in checkpoint.config:
            raise EngineStartFailed(
                f"the model {called} brings Python code of its own, and Tuwen runs none: choose a model that "
                "transformers itself has"
            ) from error
        raise EngineStartFailed(
            f"transformers {transformers.__version__} has no model {called}: a newer one may"
        ) from error


def model_of(auto: AutoModel, checkpoint: Checkpoint, device: str) -> PreTrainedModel:
    """Load the model on `device`, ready to answer, by the Auto… class of transformers for its task.

    Raises:
        EngineStartFailed: the option `dtype` names no type.
    """
    model = auto.from_pretrained(
        checkpoint.folder,
        dtype=precision(device, checkpoint.options),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        variant=checkpoint.options.get("variant"),
    )
    return model.to(device).eval()


def processor_of(checkpoint: Checkpoint) -> ProcessorMixin:
    """Load the processor that a checkpoint was saved with."""
    name = PROCESSOR_MAPPING_NAMES.get(architecture(checkpoint))
    known = processor_class_from_name(name) if name else None
    chosen = AutoProcessor if known is None else images_only(known)
    return chosen.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
