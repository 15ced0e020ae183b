"""What turns pictures and words into a transformers model's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.utils import is_torchvision_available

# Our own results say what was cut, and the engine process tells how far loading is.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class _WithoutVideos:
    """In front of a processor class: leaves out its video part, which alone needs torchvision; we send it none."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]  # type: ignore[misc]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
        parts = {"image_processor": image_processor, "tokenizer": tokenizer, "chat_template": chat_template}
        super().__init__(video_processor=None, **parts)  # type: ignore[call-arg]

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


def images_only(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class itself, or where torchvision is missing, one that does without it."""
    if is_torchvision_available() or "video_processor" not in processor.get_attributes():
        return processor
    return type(processor.__name__, (_WithoutVideos, processor), {})


def processor_of(folder: Path) -> Any:
    """The processor that a checkpoint was saved with."""
    name = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(folder).model_type)
    known = processor_class_from_name(name) if name else None
    chosen: Any = AutoProcessor if known is None else images_only(known)
    return chosen.from_pretrained(folder, local_files_only=True)
