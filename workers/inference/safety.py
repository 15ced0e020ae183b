"""A filter of your own in front of and behind the models: `TUWEN_SAFETY=import:module:function`.

    def refuse(subject: str | NDArray[np.uint8]) -> str | None: ...

It is called in the engine process with every prompt, and every negative one, before a picture is made, and with every
picture made, uint8 (height, width, 3). It returns the reason for a refusal, which the client gets to read, or None
to let it pass. A filter that fails lets nothing pass. Previews of pictures it cannot judge, so there are none with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from tuwen.engine import Engine, GenerateItem, Item, Output, Partial, Picture, Pixels, Renumbered, Run, SoFar
from tuwen.errors import ContentRefused, EngineStartFailed, TuwenError

SafetyFilter = Callable[[str | Pixels], str | None]


def load_safety_filter(spec: str) -> SafetyFilter:
    """Load the filter that a setting names.

    Raises:
        EngineStartFailed: it cannot be imported.
    """
    scheme, _, place = spec.partition(":")
    module, _, name = place.partition(":")
    if scheme != "import" or not module or not name:
        raise EngineStartFailed(f"the safety filter {spec!r} has to be import:module:function")
    try:
        safety_filter: SafetyFilter = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EngineStartFailed(f"the safety filter {spec!r} cannot be loaded: {error}") from error
    return safety_filter


def run_filtered(
    engine: Engine, items: Sequence[Item], run: Run, safety_filter: SafetyFilter
) -> list[Output | TuwenError]:
    """Run those items whose prompts pass; refused prompts and pictures become errors."""
    refused = {index: error for index, item in enumerate(items) if (error := _refuse_prompt(item, safety_filter))}
    passed = [index for index in range(len(items)) if index not in refused]
    if not passed:
        return list(refused.values())
    answers = iter(engine.run([items[index] for index in passed], _WithoutPreviews(run, passed)))
    return [refused.get(index) or _filter_answer(next(answers), safety_filter) for index in range(len(items))]


class _WithoutPreviews(Renumbered):
    """Reports growing texts and no previews: half a picture may show what the filter would refuse."""

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        super().progress(step, steps, so_far and _texts_of(so_far))


def _texts_of(so_far: SoFar) -> SoFar:
    def text(index: int) -> Partial | None:
        part = so_far(index)
        return part if isinstance(part, str) else None

    return text


def _refuse_prompt(item: Item, safety_filter: SafetyFilter) -> ContentRefused | None:
    if not isinstance(item, GenerateItem):
        return None
    for field, text in (("input.prompt", item.prompt), ("input.negative_prompt", item.negative_prompt)):
        if text and (reason := safety_filter(text)) is not None:
            return ContentRefused(f"the safety filter refused the prompt: {reason}", field=field)
    return None


def _filter_answer(answer: Output | TuwenError, safety_filter: SafetyFilter) -> Output | TuwenError:
    if isinstance(answer, Picture) and (reason := safety_filter(answer.pixels)) is not None:
        return ContentRefused(f"the safety filter refused the picture: {reason}")
    return answer
