"""A filter of your own in front of and behind the models: `TUWEN_SAFETY=import:module:function`.

    def judge(subject: str | NDArray[np.uint8]) -> str | None: ...

It is called in the engine process with every prompt, and every negative one, before a picture is made, and with every
picture made, uint8 (height, width, 3). What it returns is the reason for a refusal, which the client is told; None
lets it pass. A filter that fails lets nothing pass. Previews of pictures it cannot judge: there are none with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from tuwen.engine import Engine, GenerateItem, Item, Output, Partial, Picture, Pixels, Renumbered, Run, SoFar
from tuwen.errors import ContentRefused, EngineStartFailed, TuwenError

Judge = Callable[[str | Pixels], str | None]


def judge_named(spec: str) -> Judge:
    """The filter that a setting names.

    Raises:
        EngineStartFailed: there is none.
    """
    scheme, _, place = spec.partition(":")
    module, _, name = place.partition(":")
    if scheme != "import" or not module or not name:
        raise EngineStartFailed(f"the safety filter {spec!r} has to be import:module:function")
    try:
        judge: Judge = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EngineStartFailed(f"the safety filter {spec!r} cannot be loaded: {error}") from error
    return judge


def run_judged(engine: Engine, items: Sequence[Item], run: Run, judge: Judge) -> list[Output | TuwenError]:
    """`engine.run` for those items whose prompts pass; pictures that do not pass are not answered."""
    refused = {index: error for index, item in enumerate(items) if (error := _refusal_of_prompt(item, judge))}
    passed = [index for index in range(len(items)) if index not in refused]
    if not passed:
        return list(refused.values())
    answers = iter(engine.run([items[index] for index in passed], _Unjudged(run, passed)))
    return [refused.get(index) or _judged(next(answers), judge) for index in range(len(items))]


class _Unjudged(Renumbered):
    """Tells texts as they grow, and no previews: half a picture may show what will not be let pass."""

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        super().progress(step, steps, so_far and _texts_of(so_far))


def _texts_of(so_far: SoFar) -> SoFar:
    def text(index: int) -> Partial | None:
        part = so_far(index)
        return part if isinstance(part, str) else None

    return text


def _refusal_of_prompt(item: Item, judge: Judge) -> ContentRefused | None:
    if not isinstance(item, GenerateItem):
        return None
    for field, text in (("input.prompt", item.prompt), ("input.negative_prompt", item.negative_prompt)):
        if text and (reason := judge(text)) is not None:
            return ContentRefused(f"the safety filter refused the prompt: {reason}", field=field)
    return None


def _judged(answer: Output | TuwenError, judge: Judge) -> Output | TuwenError:
    if isinstance(answer, Picture) and (reason := judge(answer.pixels)) is not None:
        return ContentRefused(f"the safety filter refused the picture: {reason}")
    return answer
