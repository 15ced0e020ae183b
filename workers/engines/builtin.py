"""The built-in engines: models of the drawn world, trained by this project, that need no download.

They read and paint pictures of 64×64 pixels; other sizes are fitted (see `framing.fit`). They compute in float32:
the models are so small that half precision gains nothing. On a CPU with one thread, a picture that is drawn does not
depend on what else is in its batch; other answers do so by the last digits of a float.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Picture, Pixels, RecognizeItem, Run
from tuwen.errors import EngineStartFailed, InvalidRequest, TuwenError
from tuwen.jobs import DescribeResult, Kind, MatchResult, RecognizedObject, RecognizeResult
from workers.engines.framing import fit
from workers.models.beliefs import Beliefs, pool
from workers.models.describer import Describer, Sight, Written, sample, write
from workers.models.generator import OPEN, Generator
from workers.models.matcher import Matcher, log_odds
from workers.models.recognizer import Recognized, Recognizer, interpret, labels_beside
from workers.models.text import END, Vocabulary, unknown_words, vocabulary
from workers.models.trunk import SIDE
from workers.scenes.completing import Scenery, complete
from workers.scenes.grammar import Thing
from workers.scenes.lexicon import CONCEPT, KEYS
from workers.scenes.parsing import parse, tokens
from workers.scenes.understanding import refusal, understand

WEIGHTS = Path(__file__).parent.parent / "weights"
LARGEST = 1024
"""Widest and tallest picture that the generator's output is enlarged to."""

Model = TypeVar("Model", bound=nn.Module)
Kindred = TypeVar("Kindred", bound=Item)


def weights_of(name: str) -> tuple[Path, str]:
    """The file with a model's weights, and a revision that changes with its content.

    Raises:
        EngineStartFailed: there is no such file.
    """
    path = WEIGHTS / f"{name}.safetensors"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineStartFailed(
            f"no weights at {path}: train them with `python -m workers.lab.training {name} --out runs/{name} --ship`"
        ) from error
    return path, f"{name}-{digest[:12]}"


def load(model: Model, path: Path, device: str) -> Model:
    """Load a model's stored weights and make it ready to run. They are stored in half precision and run in single."""
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.to(device).eval()


def as_images(pixels: Sequence[Pixels], device: str) -> Tensor:
    """Convert uint8 pictures of any size to float (B, 3, 64, 64) in [-1, 1]."""
    images = torch.from_numpy(np.stack([fit(p, SIDE, SIDE) for p in pixels])).to(device)
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images.contiguous(memory_format=torch.channels_last)


def token_ids(texts: Sequence[str], device: str, words: Vocabulary | None = None) -> Tensor:
    """Encode texts as int (B, longest), padded; `words` is the built-in vocabulary by default."""
    return torch.from_numpy((words or vocabulary()).encode_batch(texts)).to(device)


def of_type(items: Sequence[Item], kind: type[Kindred]) -> list[Kindred]:
    """Return the items as those of the engine's kind, which all of them are."""
    return [item for item in items if isinstance(item, kind)]


def _limit(device: str) -> int:
    return 32 if device == "cpu" else 512


_EXAMPLE_TEXT = "一只黑色的猫在草地上跳跃"


def _example_pixels() -> Pixels:
    """The scene of `_EXAMPLE_TEXT` as the drawn world has it, shape (64, 64, 3)."""
    return np.asarray(Image.open(WEIGHTS / "example.png").convert("RGB"))


class BuiltinGenerator:
    """Paints the drawn world from a prompt in Chinese or English."""

    kind: ClassVar = Kind.GENERATE

    def __init__(self, device: str):
        path, self.revision = weights_of("generator")
        self.device = device
        self.model = Generator.load(path, device)

    def example(self) -> Item:
        """Return the prompt of the example scene."""
        return GenerateItem(_EXAMPLE_TEXT, seed=0)

    def batch_limit(self, item: Item) -> int:  # noqa: ARG002
        """Return the most items in a batch, which depends on the device alone."""
        return _limit(self.device)

    def run(self, items: Sequence[Item], run: Run) -> Sequence[Picture | TuwenError]:
        """Draw all prompts. Steps and guidance mean nothing to a GAN and change nothing.

        What a prompt means is settled before the planner reads it (`workers.scenes.understanding`); words of one's own
        data, of which the grammar knows nothing, are the planner's alone to understand.
        """
        prompts = [self._understand(item) for item in of_type(items, GenerateItem)]
        drawable = [prompt for prompt in prompts if isinstance(prompt, _Prompt)]
        pictures = iter(self._draw(drawable) if drawable else ())
        run.progress(1, 1)
        return [
            self._to_picture(prompt, next(pictures)) if isinstance(prompt, _Prompt) else prompt for prompt in prompts
        ]

    def _understand(self, item: GenerateItem) -> _Prompt | InvalidRequest:
        if max(item.width or 0, item.height or 0) > LARGEST:
            field = "input.width" if (item.width or 0) > LARGEST else "input.height"
            return InvalidRequest(f"the built-in generator makes at most {LARGEST}×{LARGEST} pixels", field=field)
        if self.model.vocabulary.own:
            return _Prompt(item, None, unknown_words(item.prompt, self.model.vocabulary))
        asked = understand(item.prompt)
        if asked.empty:
            return InvalidRequest(refusal(asked), field="input.prompt")
        return _Prompt(item, complete(asked, item.seed), asked.unknown)

    def _draw(self, prompts: Sequence[_Prompt]) -> NDArray[np.uint8]:
        ids = token_ids([prompt.text for prompt in prompts], self.device, self.model.vocabulary)
        columns = len(self.model.shape.plan)
        settled = [np.full(columns, OPEN) if prompt.scenery is None else prompt.scenery.slots() for prompt in prompts]
        return self.model.sample(
            ids, [prompt.item.seed for prompt in prompts], torch.from_numpy(np.stack(settled)).to(self.device)
        )

    def _to_picture(self, prompt: _Prompt, pixels: Pixels) -> Picture:
        width, height = prompt.item.width or pixels.shape[1], prompt.item.height or pixels.shape[0]
        warnings = prompt.scenery.warnings if prompt.scenery else ()
        if prompt.item.negative_prompt:
            warnings += ("the built-in generator does not heed a negative prompt",)
        revised = prompt.scenery.text if prompt.scenery else ""
        return Picture(fit(pixels, width, height), prompt.unknown, warnings, revised)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request with what is understood of it; nothing is, where the model learnt words of its own."""

    item: GenerateItem
    scenery: Scenery | None
    unknown: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.scenery.text if self.scenery else self.item.prompt


class BuiltinDescriber:
    """Describes pictures of the drawn world in Chinese or English."""

    kind: ClassVar = Kind.DESCRIBE

    def __init__(self, device: str):
        path, self.revision = weights_of("describer")
        self.device = device
        self.model = load(Describer(words=Vocabulary.beside(path)), path, device)

    def example(self) -> Item:
        """Return the picture of the example scene."""
        return DescribeItem(_example_pixels(), "zh", "detailed")

    def batch_limit(self, item: Item) -> int:  # noqa: ARG002
        """Return the most items in a batch, which depends on the device alone."""
        return _limit(self.device)

    @torch.no_grad()
    def run(self, items: Sequence[Item], run: Run) -> Sequence[DescribeResult | TuwenError]:
        """Write all texts at once; stops early when nobody waits for any of them."""
        wanted = of_type(items, DescribeItem)
        most = max(item.max_tokens for item in wanted)
        sight, domain = self.model.look(as_images([item.pixels for item in wanted], self.device))
        begin = [self.model.vocabulary.begin(item.language, item.style) for item in wanted]

        def step(count: int) -> bool:
            run.progress(count, most)
            return not all(run.cancelled(i) for i in range(len(wanted)))

        begins = torch.tensor(begin, device=self.device)
        texts = self._write([item.seed for item in wanted], sight, begins, most, step)
        inside = domain.float().sigmoid().tolist()
        return [self._result(*each) for each in zip(wanted, texts, inside, strict=True)]

    def _write(
        self, seeds: Sequence[int | None], sight: Sight, begins: Tensor, most: int, step: Callable[[int], bool]
    ) -> list[Written]:
        """Write a text for each row: sampled where it has a seed, otherwise the most probable one."""
        texts: dict[int, Written] = {}
        plain = [row for row, seed in enumerate(seeds) if seed is None]
        lots = {row: seed for row, seed in enumerate(seeds) if seed is not None}
        if plain:
            rows = torch.tensor(plain, device=self.device)
            found = write(self.model, sight.rows(rows), begins[rows], max_tokens=most, step=step)
            texts |= zip(plain, found, strict=True)
        if lots:
            rows = torch.tensor([*lots], device=self.device)
            found = sample(self.model, sight.rows(rows), begins[rows], [*lots.values()], max_tokens=most, step=step)
            texts |= zip(lots, found, strict=True)
        return [texts[row] for row in range(len(seeds))]

    def _result(self, item: DescribeItem, written: Written, inside: float) -> DescribeResult:
        mean = math.exp(sum(math.log(max(p, 1e-9)) for p in written.confidences) / max(1, len(written.confidences)))
        return DescribeResult(
            text=self.model.vocabulary.decode([*written.ids, END]),
            language=item.language,
            confidence=min(1.0, mean * inside),
            out_of_domain=inside < 0.5,
            tokens=len(written.ids),
        )


class BuiltinRecognizer:
    """Names the objects, attributes, actions, scene and relation in a picture of the drawn world."""

    kind: ClassVar = Kind.RECOGNIZE

    def __init__(self, device: str):
        path, self.revision = weights_of("recognizer")
        self.device = device
        self.model = load(Recognizer(labels=labels_beside(path)), path, device)

    def example(self) -> Item:
        """Return the picture of the example scene."""
        return RecognizeItem(_example_pixels())

    def batch_limit(self, item: Item) -> int:  # noqa: ARG002
        return 2 * _limit(self.device)

    @torch.no_grad()
    def run(self, items: Sequence[Item], run: Run) -> Sequence[RecognizeResult | TuwenError]:
        """Recognise all pictures in one forward pass."""
        images = as_images([item.pixels for item in of_type(items, RecognizeItem)], self.device)
        found = interpret(self.model(images), self.model.labels)
        run.progress(1, 1)
        return [self._result(recognized) for recognized in found]

    def _result(self, found: Recognized) -> RecognizeResult:
        objects = tuple(
            _object(t, c * found.in_domain) for t, c in zip(found.scene.things, found.confidences, strict=True)
        )
        return RecognizeResult(
            objects=objects,
            scene=found.scene.place,
            scene_zh=_zh(found.scene.place),
            relation=found.scene.relation,
            confidence=math.prod(found.confidences) * found.place_confidence * found.in_domain,
            out_of_domain=found.in_domain < 0.5,
        )


def _zh(label: str) -> str:
    """The Chinese name of a label; own labels have only the one that they were given."""
    return CONCEPT[label].zh[0] if label in CONCEPT else label


def _object(thing: Thing, confidence: float) -> RecognizedObject:
    return RecognizedObject(
        name=thing.object,
        name_zh=_zh(thing.object),
        confidence=confidence,
        attributes={"colour": thing.colour, "size": thing.size},
        attributes_zh={"colour": _zh(thing.colour), "size": CONCEPT[thing.size].zh_short},
        action=thing.action,
        action_zh=_zh(thing.action) if thing.action else None,
        count=thing.count,
    )


class BuiltinMatcher:
    """Asks two models that know nothing of each other: one learnt to compare pictures with texts, the other, the
    recogniser, has never read one (`workers.models.beliefs`). On unseen combinations the former puts the true caption
    above nine with a wrong statement each in 56 % of pictures, both together in 92 %."""

    kind: ClassVar = Kind.MATCH

    def __init__(self, device: str):
        path, self.revision = weights_of("matcher")
        self.device = device
        self.model = load(Matcher(words=Vocabulary.beside(path)), path, device)
        self.recognizer: Recognizer | None = None
        # For own data, nobody knows which words and labels mean the same.
        if not self.model.vocabulary.own:
            eyes, revision = weights_of("recognizer")
            if labels_beside(eyes) == KEYS:
                self.recognizer = load(Recognizer(), eyes, device)
                self.revision += f"+{revision}"

    def example(self) -> Item:
        """Return the example scene, as picture and text."""
        return MatchItem(_example_pixels(), _EXAMPLE_TEXT)

    def batch_limit(self, item: Item) -> int:  # noqa: ARG002
        return 2 * _limit(self.device)

    def run(self, items: Sequence[Item], run: Run) -> Sequence[MatchResult | TuwenError]:
        """Score all pairs; a score is multiplied by the share of the text that the matcher knows."""
        wanted = of_type(items, MatchItem)
        odds = self.log_odds([item.pixels for item in wanted], [item.text for item in wanted])
        run.progress(1, 1)
        known = [_known_share(item.text, self.model.vocabulary) for item in wanted]
        return [MatchResult(score=score * share) for score, share in zip(odds.sigmoid().tolist(), known, strict=True)]

    @torch.no_grad()
    def log_odds(self, pictures: Sequence[Pixels], texts: Sequence[str], *, pairwise: bool = True) -> Tensor:
        """Log-odds that texts fit pictures: (B,) for pairs, otherwise (pictures, texts)."""
        images = as_images(pictures, self.device)
        claims = self.model.encode_texts(token_ids(texts, self.device, self.model.vocabulary))
        evidence = self.model.evidence(self.model.encode_images(images), claims, pairwise=pairwise)
        learnt = self.model.calibrated(evidence).cpu()
        if self.recognizer is None:
            return learnt
        beliefs, said = Beliefs(self.recognizer(images)), [parse(text) for text in texts]
        rows = range(len(pictures))
        log_p = (
            [beliefs.log_p(row, each) for row, each in zip(rows, said, strict=True)]
            if pairwise
            else [[beliefs.log_p(row, each) for each in said] for row in rows]
        )
        return pool(learnt, log_odds(torch.tensor(log_p)))


def _known_share(text: str, words: Vocabulary) -> float:
    """The share of a text's statements, from 0 to 1, that the matcher can judge; it vouches for no more."""
    said = [token for token in tokens(text) if token.role not in ("filler", "separator", "exists")]
    return sum(t.role != "unknown" or words.learnt(t.text) for t in said) / len(said) if said else 0.0
