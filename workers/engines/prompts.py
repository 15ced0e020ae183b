"""How much of a prompt a pipeline's text encoders read."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase

SHORT = 60
"""Most characters of a cut end that a warning quotes; it then says how many more there are."""


class PromptReader:
    """A pipeline's tokenizers; the one that takes the most decides what is lost."""

    def __init__(self, pipeline: DiffusionPipeline, parameters: Mapping[str, Parameter]):
        named = [getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
        sequence = parameters.get("max_sequence_length")
        longest = sequence.default if sequence is not None and isinstance(sequence.default, int) else None
        self.tokenizers = [(each, _limit(each, longest)) for each in named if each is not None]
        scale = parameters.get("true_cfg_scale")
        self.heeds_negative_prompt = "negative_prompt" in parameters and (scale is None or (scale.default or 0) > 1)

    def warn_of_cut(self, what: str, text: str) -> list[str]:
        """Return a warning that quotes the end of `text` which no encoder reads; an empty list where all is read."""
        ends = [(unread(tokenizer, text, limit), limit) for tokenizer, limit in self.tokenizers]
        if not text or not ends:
            return []
        rest, limit = min(ends, key=lambda end: len(end[0]))
        return [cut_warning(what, rest, limit)] if rest else []


def _limit(tokenizer: PreTrainedTokenizerBase, longest: int | None) -> int:
    """Most tokens: CLIP's limit is the tokenizer's, others take what the pipeline gives them."""
    own: int = tokenizer.model_max_length
    return own if longest is None or "CLIP" in type(tokenizer).__name__ else longest


def unread(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> str:
    """Return the end of `text` beyond `limit` tokens, counting those that begin and end a text."""
    if len(tokenizer(text, verbose=False)["input_ids"]) <= limit:
        return ""
    room = limit - tokenizer.num_special_tokens_to_add()
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[offsets[room][0] :].strip() if room < len(offsets) else ""


def cut_warning(what: str, rest: str, limit: int) -> str:
    """The warning that quotes `rest`, the end of a text beyond `limit` tokens."""
    quoted = rest if len(rest) <= SHORT else f"{rest[:SHORT]}… and {len(rest) - SHORT} characters more"
    return f"the model's text encoder takes {limit} tokens; this end of the {what} was not read: “{quoted}”"
