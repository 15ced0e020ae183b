"""Image to text with any captioner or chat model that transformers knows as image-text-to-text.

    transformers:REPO_OR_FOLDER[@COMMIT][?OPTION=VALUE&…]

    prompt           what a chat model is asked, or the beginning that a captioner continues; `{language}` and
                     `{style}` in it stand for the job's. A chat model without one is asked `QUESTIONS`
    language         zh or en: what a captioner writes, which cannot be asked; en when not given
    dtype, compile   float32|float16|bfloat16; default|reduce-overhead|max-autotune
                     (compiled at the start; of a chat model what decodes, where its time goes)
    batch            most images of one batch; found by measuring where it is not given
    pinned=1         never evicted for another model

A picture's text is the greedily most probable one, or sampled with its own seed: it does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tuwen.engine import DescribeItem, Item, Pixels, Renumbered, Run
from tuwen.errors import EngineError, EngineStartFailed, TuwenError
from tuwen.jobs import DescribeResult, Kind, Language, Style
from workers.engines.checkpoint import Checkpoint
from workers.engines.placement import BatchSize, Compilation, UnobservedRun, require_known_options, weight_bytes
from workers.engines.processors import architecture, model_of, processor_of
from workers.engines.prompts import cut_warning, unread

OPTIONS = ("compile", "prompt", "language")
TRIAL_TOKENS = 4
MANY_TOKENS = 2048
USUAL_TOKENS = 64
"""Tokens for which the size of a batch is measured; longer texts take more memory."""
UNSETTLED = 3
"""Last tokens of a growing text that decide how the text before them ends."""
LIKELY = 50
"""Words among which one is sampled (top-k; Fan et al., 2018): each of the many others is absurd."""

QUESTIONS: dict[tuple[Language, Style], str] = {
    ("en", "short"): "Describe this image in one short sentence.",
    ("en", "detailed"): "Describe this image in detail: the objects, their attributes, actions and surroundings.",
    ("en", "tags"): "List what this image shows as short tags, separated by commas, and nothing else.",
    ("zh", "short"): "用一句简短的中文描述这张图片。",
    ("zh", "detailed"): "用中文详细描述这张图片：有哪些物体，它们的属性、动作和所处的环境。",
    ("zh", "tags"): "用简短的中文标签列出这张图片的内容，以逗号分隔，不要写别的。",
}
NAMES: dict[Language, str] = {"en": "English", "zh": "中文"}


class TransformersDescriber:
    """An image-to-text model of transformers, with the options that the module's docstring lists."""

    kind: ClassVar = Kind.DESCRIBE
    layout: ClassVar = "model"

    def __init__(self, device: str, checkpoint: Checkpoint):
        """
        Raises:
            EngineStartFailed: not an image-to-text model, or an option means nothing.
        """
        options = checkpoint.options
        require_known_options(options, OPTIONS)
        _check_kind(checkpoint)
        self.device = device
        self.revision = checkpoint.revision
        self.model = model_of(AutoModelForImageTextToText, checkpoint, device)
        self.processor = processor_of(checkpoint)
        self.chats = bool(getattr(self.processor, "chat_template", None))
        if self.chats:
            self.processor.tokenizer.padding_side = "left"  # the answers begin where the questions end
        self.prompt = options.get("prompt", "")
        config = getattr(self.model.config, "text_config", self.model.config)
        self.positions: int = getattr(config, "max_position_embeddings", MANY_TOKENS)
        self.language: Language = "zh" if options.get("language") == "zh" else "en"
        self.batch = BatchSize.of(device, options, start=8, most=128)
        self.compilation = Compilation(options)

    def example(self) -> Item:
        """Return a grey picture, described in a few tokens."""
        return DescribeItem(_grey(), max_tokens=TRIAL_TOKENS)

    def weights(self) -> int:
        """Return the bytes of the model's weights."""
        return weight_bytes([self.model])

    def calibrate(self, room: int) -> None:
        """Measure with a large picture and the default number of tokens: both take memory."""
        example = DescribeItem(_grey(1024), max_tokens=USUAL_TOKENS)
        with self.compilation.reopen():
            self.batch.measure(lambda count: self.run([example] * count, UnobservedRun()), room)

    def compile(self) -> None:
        """Compile the networks that `generate` spends its time in, where the option `compile` is given."""
        example = self.example()
        self.compilation.run(
            _networks(self.model),
            lambda count: self.run([example] * count, UnobservedRun()),
            self.batch.best,
            dynamic=True,  # texts grow with every token
        )

    def batch_limit(self, item: Item) -> int:
        """Most images of a batch: fewer, the more tokens are asked for."""
        tokens = item.max_tokens if isinstance(item, DescribeItem) else USUAL_TOKENS
        return self.batch.limit(max(1.0, tokens / USUAL_TOKENS))

    @torch.inference_mode()
    def run(self, items: Sequence[Item], run: Run) -> Sequence[DescribeResult | TuwenError]:
        """Write all texts; a captioner needs a pass for each length of prompt, a chat model one for all."""
        wanted = [item for item in items if isinstance(item, DescribeItem)]
        answers: dict[int, DescribeResult | TuwenError] = {}
        for begun, rows in self._groups(wanted).items():
            written = self._write([wanted[row] for row in rows], begun, Renumbered(run, rows))
            answers.update(zip(rows, written, strict=True))
        return [answers[row] for row in range(len(wanted))]

    def _groups(self, wanted: list[DescribeItem]) -> dict[int, list[int]]:
        """Group the rows that can be written together, by the tokens of the text that they continue: a captioner
        continues all texts of a batch at the same place."""
        if self.chats:
            return {0: [*range(len(wanted))]}
        texts = [self._instruction(item) for item in wanted]
        begun = {text: self._begun(text) for text in set(texts)}
        groups: dict[int, list[int]] = {}
        for row, text in enumerate(texts):
            groups.setdefault(begun[text], []).append(row)
        return groups

    def _begun(self, text: str) -> int:
        return min(len(self.processor.tokenizer(text, verbose=False)["input_ids"]), self.positions // 2)

    def _write(self, wanted: list[DescribeItem], begun: int, run: Run) -> list[DescribeResult | TuwenError]:
        tokens = max(1, min(wanted[0].max_tokens, self.positions - begun))
        watch = _Watch(run, [item.seed for item in wanted], tokens, self._text)
        with self.compilation.forbid_more():
            sequences = self.model.generate(
                **self._inputs(wanted),
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                logits_processor=LogitsProcessorList([watch]),
                stopping_criteria=StoppingCriteriaList([_Stop(watch)]),
            )
        ends = _ends(self.model)
        rows = zip(wanted, sequences, watch.sureness(), watch.broken.tolist(), strict=True)
        return [self._result(item, ids, watch, sure, broken, ends) for item, ids, sure, broken in rows]

    # ── in ────────────────────────────────────────────────────────────────────────────────────────

    def _inputs(self, wanted: list[DescribeItem]) -> BatchFeature:
        images = [Image.fromarray(item.pixels) for item in wanted]
        texts = [self._question(item) if self.chats else self._instruction(item) for item in wanted]
        if self.chats:
            each_its_own = [[image] for image in images]
            inputs = self.processor(images=each_its_own, text=texts, padding=True, return_tensors="pt")
        elif any(texts):
            cut: dict[str, bool | int] = {"truncation": True, "max_length": self.positions // 2}
            inputs = self.processor(images=images, text=texts, return_tensors="pt", **cut)
        else:
            inputs = self.processor(images=images, return_tensors="pt")
        return inputs.to(self.device, self.model.dtype)

    def _instruction(self, item: DescribeItem) -> str:
        template = item.prompt or self.prompt
        return template.replace("{language}", NAMES[item.language]).replace("{style}", item.style)

    def _question(self, item: DescribeItem) -> str:
        words = self._instruction(item) or QUESTIONS[item.language, item.style]
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
        return str(self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))

    # ── out ───────────────────────────────────────────────────────────────────────────────────────

    def _result(
        self, item: DescribeItem, ids: Tensor, watch: _Watch, sureness: list[float], broken: bool, ends: set[int]
    ) -> DescribeResult | TuwenError:
        if broken:
            return EngineError(
                "the model answered with not-a-number: its numbers overflow at this precision, or its weights are "
                "broken; try dtype=float32 among its options"
            )
        begin, written = watch.begin, ids[watch.begin :].tolist()
        length = next((place for place, token in enumerate(written) if token in ends), len(written))
        said = sureness[: length + 1]  # the end too: that the text is over is part of it
        return DescribeResult(
            text=self._text(ids, begin),
            language=item.language if self.chats else self.language,
            confidence=min(1.0, math.exp(sum(said) / max(1, len(said)))),
            tokens=length,
            prompt_tokens=begin if self.chats else None,
            warnings=tuple(self._warnings(item, length, watch.steps)),
        )

    def _text(self, ids: Tensor, begin: int) -> str:
        """Decode what is written in one row of tokens; a captioner's text begins with its prompt."""
        text = self.processor.tokenizer.decode(ids[begin:] if self.chats else ids, skip_special_tokens=True)
        return str(text).replace("\x00", "\N{REPLACEMENT CHARACTER}").strip()

    def _warnings(self, item: DescribeItem, length: int, most: int) -> list[str]:
        warnings = []
        if length >= item.max_tokens:
            warnings.append(f"the text was cut off after max_tokens={item.max_tokens}")
        elif length >= most:
            warnings.append(f"the text was cut off after {most} tokens, the most that this model writes")
        limit = self.positions // 2
        if not self.chats and (rest := unread(self.processor.tokenizer, self._instruction(item), limit)):
            warnings.append(cut_warning("prompt", rest, limit))
        if not self.chats and item.language != self.language:
            warnings.append(f"this captioner writes {NAMES[self.language]} whatever is asked")
        return warnings


class _Watch(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    """Sees the scores of every step: samples, records how sure the model is, reports progress, asks who waits."""

    def __init__(self, run: Run, seeds: Sequence[int | None], steps: int, text: Callable[[Tensor, int], str]):
        self.run, self.count, self.steps, self.text = run, len(seeds), steps, text
        self.lots = {row: torch.Generator().manual_seed(seed) for row, seed in enumerate(seeds) if seed is not None}
        self.begin = 0
        """Index of the first written token in the sequences; 0 where the prompt went in as embeddings."""
        self.broken = torch.zeros(len(seeds), dtype=torch.bool)
        self._sureness: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if not self._sureness:
            self.begin = ids.shape[1]
            self.broken = self.broken.to(scores.device)
        self.broken |= scores.isnan().any(dim=-1)
        sureness = scores.float().log_softmax(dim=-1)
        for row, lot in self.lots.items():
            scores[row] = draw_word(sureness[row], lot)
        self._sureness.append(sureness.gather(-1, scores.argmax(dim=-1, keepdim=True)).squeeze(-1))
        return scores

    def tell(self, ids: Tensor) -> None:
        """Report a step. `ids` (items, tokens): all that is written so far."""
        self.run.progress(len(self._sureness), self.steps, lambda index: self._settled_text(ids[index].cpu()))

    def _settled_text(self, ids: Tensor) -> str:
        """Return the beginning of a row's text that further tokens do not change.

        They finish words and characters of several bytes, and take back spaces (“do n ' t” becomes “don't”), none of
        which reaches back further than `UNSETTLED` tokens.
        """
        before = self.text(ids[:-UNSETTLED], self.begin) if len(ids) - UNSETTLED > self.begin else ""
        return commonprefix([self.text(ids, self.begin), before]).rstrip()  # noqa: RUF071  # letters are meant

    def unwanted(self) -> list[bool]:
        return [self.run.cancelled(index) for index in range(self.count)]

    def sureness(self) -> list[list[float]]:
        """Log-probability of each written token, (items, steps)."""
        return torch.stack(self._sureness, dim=1).tolist() if self._sureness else [[]] * self.count


class _Stop(StoppingCriteria):  # type: ignore[misc]  # mypy does not follow transformers
    """Ends the texts that nobody waits for, and so the batch when nobody waits for any."""

    def __init__(self, watch: _Watch):
        self.watch = watch

    def __call__(self, ids: Tensor, scores: object, **_: object) -> Tensor:  # noqa: ARG002
        self.watch.tell(ids)
        return torch.tensor(self.watch.unwanted(), device=ids.device)


def draw_word(sureness: Tensor, lot: torch.Generator) -> Tensor:
    """Return scores (V,) whose greatest is a word sampled by its probability, among the most probable ones.

    The Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014): so greedy decoding samples, each row alone.
    """
    likely, words = sureness.topk(min(LIKELY, len(sureness)))
    noise = -torch.empty(len(words)).exponential_(generator=lot).log()
    return torch.full_like(sureness, -math.inf).scatter(-1, words, likely + noise.to(likely))


def _check_kind(checkpoint: Checkpoint) -> None:
    kind = architecture(checkpoint)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise EngineStartFailed(
            f"a {kind} model writes no text about images, which TUWEN_DESCRIBE needs: captioners such as BLIP and "
            "chat models such as Qwen-VL do"
        )


def _networks(model: PreTrainedModel) -> list[nn.Module]:
    """The networks that `generate` spends its time in: two halves as in BLIP, otherwise the language model's decoder.

    The code between a chat model's parts looks at token ids, which breaks graphs into useless pieces.
    """
    halves = [getattr(model, name, None) for name in ("vision_model", "text_decoder")]
    found = [half for half in halves if half is not None]
    return found if len(found) == len(halves) else [model.get_decoder()]


def _ends(model: PreTrainedModel) -> set[int]:
    """Ids of the tokens that end a text."""
    configs = (model.generation_config, model.config, getattr(model.config, "text_config", None))
    found: set[int] = set()
    for config in configs:
        for name in ("eos_token_id", "sep_token_id"):
            ids = getattr(config, name, None)
            found.update(ids if isinstance(ids, (list, tuple)) else [ids] if ids is not None else [])
    return found


def _grey(side: int = 224) -> Pixels:
    import numpy as np

    return np.full((side, side, 3), 128, np.uint8)
