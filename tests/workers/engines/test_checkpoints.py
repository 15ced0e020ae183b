"""Real architectures with random weights, loaded from disk as a user's are. Only their size is unreal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.model_specs import parse_models
from tests.support import checkpoints
from tuwen.engine import DescribeItem, GenerateItem, Heavy, MatchItem, Picture, Pixels, RecognizeItem, SoFar
from tuwen.errors import EngineError, EngineStartFailed, InvalidRequest
from tuwen.jobs import DescribeResult, MatchResult, RecognizeResult
from workers.engines.checkpoint import locate
from workers.engines.clip import ClipMatcher, ClipRecognizer
from workers.engines.diffusers import DiffusersGenerator
from workers.engines.placement import UnobservedRun
from workers.engines.transformers import UNSETTLED, TransformersDescriber, _Watch
from workers.inference.policy import Policy
from workers.scenes.lexicon import OBJECTS

pytestmark = pytest.mark.usefixtures("one_torch_thread")

GENERATORS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3")
DESCRIBERS = ("blip", "qwen2_vl")
MATCHERS = ("clip", "siglip")
PROMPT = "a black cat on snow"

Load = Callable[..., Any]


def load(engine: type, text: str) -> Any:
    """The engine of a model written as in the settings."""
    [spec] = parse_models(text)
    checkpoint = locate(spec, engine.layout, Policy(), lambda *_: None)  # type: ignore[attr-defined]
    return engine(device="cpu", checkpoint=checkpoint)


@pytest.fixture(scope="session")
def loaded(tiny: Callable[[str], Path]) -> Load:
    """An engine for a tiny checkpoint, loaded once for the same options."""
    schemes = {DiffusersGenerator: "diffusers", TransformersDescriber: "transformers"}
    return cache(lambda engine, name, options="": load(engine, f"{schemes.get(engine, 'clip')}:{tiny(name)}{options}"))


@pytest.fixture
def copied(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny checkpoint that the test may damage."""
    return lambda name: Path(shutil.copytree(tiny(name), tmp_path / name))


class Listening(UnobservedRun):
    """Hears the progress, and watches these items; cancels all items once `patience` steps were told."""

    def __init__(self, patience: int = 10**6, watched: Sequence[int] = ()):
        self.heard: list[tuple[int, int]] = []
        self.patience = patience
        self.parts: dict[int, list[Any]] = {index: [] for index in watched}

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        self.heard.append((step, steps))
        for index, parts in self.parts.items():
            if so_far is not None:
                parts.append(so_far(index))

    def cancelled(self, index: int) -> bool:
        return len(self.heard) >= self.patience


def photo(seed: int, width: int = 40, height: int = 24) -> Pixels:
    lot = np.random.default_rng(seed)
    return (lot.integers(0, 256, 3) * lot.random((height, width, 1))).astype(np.uint8)


def picture(engine: Any, **wanted: Any) -> Pixels:
    [made] = engine.run([GenerateItem(**{"prompt": PROMPT, "seed": 1, "steps": 2, **wanted})], UnobservedRun())
    assert isinstance(made, Picture), made
    return made.pixels


def distance(one: Pixels, other: Pixels) -> int:
    """The largest difference of any value."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# ── text to image ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GENERATORS)
def test_a_picture_does_not_depend_on_its_neighbours(loaded: Load, name: str) -> None:
    engine = loaded(DiffusersGenerator, name)
    items = [GenerateItem(prompt, seed, steps=3) for seed, prompt in enumerate([PROMPT, "a red dog", "photo of grass"])]
    together = engine.run(items, UnobservedRun())
    alone = [engine.run([item], UnobservedRun())[0] for item in items]
    assert all(distance(a.pixels, b.pixels) <= 1 for a, b in zip(together, alone, strict=True))
    assert distance(together[0].pixels, together[1].pixels) > 50
    assert together[0].pixels.shape == (32, 32, 3)


@pytest.mark.parametrize("name", GENERATORS)
def test_what_a_job_asks_for_changes_its_picture(loaded: Load, name: str) -> None:
    engine = loaded(DiffusersGenerator, name)
    plain = picture(engine)
    assert distance(plain, picture(engine)) == 0
    for wanted in ({"seed": 2}, {"prompt": "a red dog"}, {"steps": 4}, {"guidance": 20.0}, {"negative_prompt": "red"}):
        assert distance(plain, picture(engine, **wanted)) > 1, wanted
    assert picture(engine, width=48, height=24).shape == (24, 48, 3)


def test_the_settings_say_what_a_job_gets_that_asks_for_nothing(loaded: Load) -> None:
    engine = loaded(DiffusersGenerator, "stable_diffusion", "?steps=3&guidance=2&size=16x24")
    run = Listening()
    [made] = engine.run([GenerateItem(PROMPT, 1)], run)
    assert made.pixels.shape == (24, 16, 3)
    assert run.heard[-1] == (3, 3)
    same = loaded(DiffusersGenerator, "stable_diffusion")
    assert distance(made.pixels, picture(same, steps=3, guidance=2.0, width=16, height=24)) == 0


def test_another_scheduler_makes_another_picture(loaded: Load) -> None:
    plain = picture(loaded(DiffusersGenerator, "stable_diffusion"), steps=4)
    ancestral = loaded(DiffusersGenerator, "stable_diffusion", "?scheduler=EulerAncestral")
    assert distance(plain, picture(ancestral, steps=4)) > 1
    # It draws noise in every step; that too is the image's own.
    pair = ancestral.run([GenerateItem(PROMPT, seed, steps=4) for seed in (7, 1)], UnobservedRun())
    assert distance(pair[1].pixels, picture(ancestral, steps=4)) <= 1


def test_a_lora_changes_the_picture_by_its_strength(loaded: Load, tmp_path: Path) -> None:
    lora = checkpoints.lora_for_stable_diffusion_xl(tmp_path / "ink.safetensors")
    plain = picture(loaded(DiffusersGenerator, "stable_diffusion_xl"))
    full = loaded(DiffusersGenerator, "stable_diffusion_xl", f"?lora={lora}")
    half = loaded(DiffusersGenerator, "stable_diffusion_xl", f"?lora={lora}*0.5")
    none = loaded(DiffusersGenerator, "stable_diffusion_xl", f"?lora={lora}*0")
    assert distance(plain, picture(none)) <= 1
    assert distance(plain, picture(full)) > 1
    assert distance(picture(full), picture(half)) > 1
    assert full.revision.endswith("+ink*1")


def test_the_end_of_a_long_prompt_is_quoted(loaded: Load) -> None:
    engine = loaded(DiffusersGenerator, "stable_diffusion_xl")
    long = "a black cat " * 5 + "on snow"
    [cut, short] = engine.run([GenerateItem(long, 1, steps=1), GenerateItem(PROMPT, 1, steps=1)], UnobservedRun())
    assert short.warnings == ()
    assert cut.warnings == (
        "the model's text encoder takes 16 tokens; this end of the prompt was not read: “cat on snow”",
    )


def test_a_prompt_that_one_of_the_encoders_takes_whole_is_not_cut(loaded: Load) -> None:
    engine = loaded(DiffusersGenerator, "stable_diffusion_3")
    [made] = engine.run([GenerateItem("a black cat " * 5, 1, steps=1)], UnobservedRun())
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("name", "size", "allowed"),
    [
        ("stable_diffusion", {"width": 33}, "multiples of 2 from 8 to 64"),
        ("stable_diffusion", {"height": 128}, "multiples of 2 from 8 to 64"),
        ("stable_diffusion_3", {"height": 30}, "multiples of 4 from 8 to 64"),
        ("stable_diffusion_3", {"width": 4}, "multiples of 4 from 8 to 64"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused_with_those_that_can(
    loaded: Load, name: str, size: dict[str, int], allowed: str
) -> None:
    engine = loaded(DiffusersGenerator, name)
    [field] = size
    [answer] = engine.run([GenerateItem(PROMPT, 1, steps=1, **size)], UnobservedRun())
    assert isinstance(answer, InvalidRequest)
    assert answer.field == f"input.{field}"
    assert allowed in str(answer)


def test_each_step_is_told_and_the_next_one_is_not_taken_once_nobody_waits(loaded: Load) -> None:
    engine = loaded(DiffusersGenerator, "stable_diffusion_3")
    run = Listening()
    engine.run([GenerateItem(PROMPT, 1, steps=5)], run)
    assert run.heard == [(step, 5) for step in range(1, 6)]
    cancelled = Listening(patience=2)
    answers = engine.run([GenerateItem(PROMPT, seed, steps=50) for seed in range(2)], cancelled)
    assert cancelled.heard == [(1, 50), (2, 50)]
    assert all(isinstance(answer, EngineError) for answer in answers)


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not-a-number"), (-100.0, "all black")])
def test_what_is_no_picture_is_an_error_that_says_so(tiny: Callable[[str], Path], value: float, said: str) -> None:
    engine = load(DiffusersGenerator, f"diffusers:{tiny('stable_diffusion')}")
    engine.pipeline.vae.decoder.conv_out.bias.data.fill_(value)
    [answer] = engine.run([GenerateItem(PROMPT, 1, steps=1)], UnobservedRun())
    assert isinstance(answer, EngineError)
    assert said in str(answer)
    assert "dtype=float32" in str(answer)


# ── image to text ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seeds", [(None, None, None), (3, None, 4)])
@pytest.mark.parametrize("name", DESCRIBERS)
def test_a_text_does_not_depend_on_its_neighbours(loaded: Load, name: str, seeds: tuple[int | None, ...]) -> None:
    engine = loaded(TransformersDescriber, name)
    sizes = ((40, 24), (24, 56), (64, 64))
    items = [
        DescribeItem(photo(index, *size), style="tags" if index else "short", max_tokens=8, seed=seed)
        for index, (size, seed) in enumerate(zip(sizes, seeds, strict=True))
    ]
    together = engine.run(items, UnobservedRun())
    alone = [engine.run([item], UnobservedRun())[0] for item in items]
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.confidence for each in together] == pytest.approx([each.confidence for each in alone], rel=1e-3)
    assert len({each.text for each in together}) > 1


@pytest.mark.parametrize("name", DESCRIBERS)
def test_no_more_tokens_are_written_than_asked_for(loaded: Load, name: str) -> None:
    run = Listening()
    [made] = loaded(TransformersDescriber, name).run([DescribeItem(photo(0), max_tokens=5)], run)
    assert isinstance(made, DescribeResult)
    assert made.tokens == 5
    assert run.heard == [(step, 5) for step in range(1, 6)]
    assert "the text was cut off after max_tokens=5" in made.warnings


def test_a_model_with_few_positions_writes_no_more_than_it_can(tiny: Callable[[str], Path]) -> None:
    engine = load(TransformersDescriber, f"transformers:{tiny('blip')}")
    end = engine.model.config.text_config.sep_token_id
    engine.model.text_decoder.cls.predictions.decoder.bias.data[end] = -1e4
    [made] = engine.run([DescribeItem(photo(0), max_tokens=500)], UnobservedRun())
    assert made.tokens == engine.positions - 2 < 64
    assert "the most that this model writes" in made.warnings[0]


@pytest.mark.parametrize("name", DESCRIBERS)
def test_lots_are_drawn_by_the_seed(loaded: Load, name: str) -> None:
    engine = loaded(TransformersDescriber, name)

    def text(seed: int | None) -> str:
        [made] = engine.run([DescribeItem(photo(0), max_tokens=8, seed=seed)], UnobservedRun())
        return str(made.text)

    assert text(5) == text(5)
    assert len({text(None), text(5), text(6), text(7)}) > 2


@pytest.mark.parametrize("name", DESCRIBERS)
def test_no_token_is_written_once_nobody_waits(loaded: Load, name: str) -> None:
    run = Listening(patience=3)
    loaded(TransformersDescriber, name).run([DescribeItem(photo(0), max_tokens=40)] * 2, run)
    assert run.heard == [(1, 40), (2, 40), (3, 40)]


@pytest.mark.parametrize("name", DESCRIBERS)
def test_a_growing_text_only_grows_into_the_result(loaded: Load, name: str) -> None:
    run = Listening(watched=(0, 2))
    items = [DescribeItem(photo(index), max_tokens=24, seed=index or None) for index in range(3)]
    made = loaded(TransformersDescriber, name).run(items, run)
    for index, parts in run.parts.items():
        whole = made[index].text
        assert len(parts) == len(run.heard)
        assert all(later.startswith(earlier) for earlier, later in pairwise([*parts, whole]))
        assert len({*parts, "", whole}) > 4  # it does grow


@pytest.mark.parametrize(
    "words", [["do", "n", "'", "t", "know", "."], ["it", "'", "s", "a", "cat", ",", "is", "n", "'", "t", "it", "?"]]
)
def test_a_growing_text_holds_back_what_the_tokenizer_may_still_join(
    tiny: Callable[[str], Path], words: list[str]
) -> None:
    engine = load(TransformersDescriber, f"transformers:{tiny('blip')}")
    tokenizer = engine.processor.tokenizer
    tokenizer.add_tokens(sorted(set(words)))
    tokenizer.clean_up_tokenization_spaces = True
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([*words, *["[PAD]"] * UNSETTLED]))
    watch = _Watch(UnobservedRun(), [None], 64, engine._text)
    whole = engine._text(ids, 0)
    parts = [watch._settled_text(ids[:count]) for count in range(1, len(ids) + 1)]
    assert all(whole.startswith(part) for part in parts), (whole, parts)
    assert parts[-1] == whole  # what comes after the end of a text in a batch is nothing
    assert len(set(parts)) > len(words) / 2


def test_a_growing_text_has_no_half_characters(loaded: Load) -> None:
    engine = loaded(TransformersDescriber, "qwen2_vl")
    text = "一只黑猫🐈‍⬛在草地上"
    ids = engine.processor.tokenizer(text, return_tensors="pt")["input_ids"][0]
    assert len(ids) == len(text.encode())  # each byte is a token of this tokenizer
    watch = _Watch(UnobservedRun(), [None], 64, engine._text)
    parts = [watch._settled_text(ids[:count]) for count in range(1, len(ids) + 1)]
    assert all(text.startswith(part) for part in parts)
    assert len(set(parts)) >= len(text) - 2


def test_a_chat_model_is_asked_by_language_and_style_or_in_words_of_ones_own(loaded: Load) -> None:
    engine = loaded(TransformersDescriber, "qwen2_vl")
    asked = [
        engine._question(DescribeItem(photo(0), language=language, style=style, prompt=prompt))
        for language, style, prompt in (("zh", "short", ""), ("en", "tags", ""), ("en", "short", "How many cats?"))
    ]
    assert "用一句简短的中文描述这张图片。" in asked[0]
    assert "short tags" in asked[1]
    assert "How many cats?<|im_end|>" in asked[2]
    engine = loaded(TransformersDescriber, "qwen2_vl", "?prompt=In {language}, {style}:")
    assert "In 中文, detailed:" in engine._question(DescribeItem(photo(0), language="zh", style="detailed"))


def test_a_captioner_continues_what_it_is_given_and_says_that_it_knows_one_language(loaded: Load) -> None:
    engine = loaded(TransformersDescriber, "blip", "?prompt=a photo of")
    [made] = engine.run([DescribeItem(photo(0), language="zh", max_tokens=4)], UnobservedRun())
    assert made.text.startswith("a photo of ")
    assert made.language == "en"
    assert "this captioner writes English whatever is asked" in made.warnings


def test_a_captioner_given_different_beginnings_continues_each_as_if_alone(loaded: Load) -> None:
    engine = loaded(TransformersDescriber, "blip")
    begun = ("a black cat", "", "the grass on the snow in", "a", "a white dog")
    items = [DescribeItem(photo(1), prompt=prompt, max_tokens=8) for prompt in begun]
    run = Listening(watched=range(5))
    together = engine.run(items, run)
    assert [each.text for each in together] == [engine.run([item], UnobservedRun())[0].text for item in items]
    assert all(each.text.startswith(prompt) for each, prompt in zip(together, begun, strict=True))
    for each, parts in zip(together, run.parts.values(), strict=True):
        assert max((part for part in parts if part), key=len) in each.text


def test_a_beginning_that_leaves_a_captioner_no_room_is_cut_and_quoted(loaded: Load) -> None:
    [made] = loaded(TransformersDescriber, "blip").run(
        [DescribeItem(photo(1), prompt="a black cat on snow " * 8, max_tokens=500)], UnobservedRun()
    )
    assert made.text.startswith("a black cat on snow " * 6)
    assert "takes 32 tokens; this end of the prompt was not read: “a black cat" in "\n".join(made.warnings)


def test_not_a_number_is_no_text(tiny: Callable[[str], Path]) -> None:
    engine = load(TransformersDescriber, f"transformers:{tiny('qwen2_vl')}")
    engine.model.lm_head.weight.data.fill_(float("nan"))
    [answer] = engine.run([DescribeItem(photo(0), max_tokens=2)], UnobservedRun())
    assert isinstance(answer, EngineError)
    assert "not-a-number" in str(answer)


# ── image and text ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MATCHERS)
def test_a_score_does_not_depend_on_its_neighbours(loaded: Load, name: str) -> None:
    engine = loaded(ClipMatcher, name)
    items = [MatchItem(photo(index), text) for index, text in enumerate([PROMPT, "a red dog", "grass"])]
    together = [answer.score for answer in engine.run(items, UnobservedRun())]
    alone = [engine.run([item], UnobservedRun())[0].score for item in items]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) == 3


def test_siglips_score_is_the_models_own_probability(loaded: Load) -> None:
    engine = loaded(ClipMatcher, "siglip")
    [mine] = engine.run([MatchItem(photo(0), PROMPT)], UnobservedRun())
    encoders = engine.encoders
    inputs = encoders.processor(
        images=photo(0), text=[PROMPT], padding="max_length", max_length=16, return_tensors="pt"
    )
    assert mine.score == pytest.approx(encoders.model(**inputs).logits_per_image.sigmoid().item(), abs=1e-5)


def test_clips_score_follows_its_cosine(loaded: Load) -> None:
    items = [MatchItem(photo(0), text) for text in (PROMPT, "a red dog", "grass")]
    scores = [each.score for each in loaded(ClipMatcher, "clip").run(items, UnobservedRun())]
    encoders = loaded(ClipMatcher, "clip").encoders
    inputs = encoders.processor(images=photo(0), text=[item.text for item in items], padding=True, return_tensors="pt")
    cosines = (encoders.model(**inputs).logits_per_image[0] / encoders.model.logit_scale.exp()).tolist()
    assert sorted(range(3), key=scores.__getitem__) == sorted(range(3), key=cosines.__getitem__)
    centred = loaded(ClipMatcher, "clip", f"?midpoint={cosines[0]}&steepness=10")
    assert centred.run(items[:1], UnobservedRun())[0].score == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_end_of_a_long_text_is_quoted(loaded: Load, name: str) -> None:
    [cut] = loaded(ClipMatcher, name).run([MatchItem(photo(0), "a black cat " * 6)], UnobservedRun())
    assert isinstance(cut, MatchResult)
    assert "takes 16 tokens; this end of the text was not read: “" in cut.warnings[0]
    assert cut.warnings[0].endswith("black cat”")


@pytest.mark.parametrize("name", MATCHERS)
def test_recognition_needs_no_labels_of_ones_own(loaded: Load, name: str) -> None:
    engine = loaded(ClipRecognizer, name, "?threshold=0")
    together = engine.run([RecognizeItem(photo(0)), RecognizeItem(photo(1))], UnobservedRun())
    [alone] = engine.run([RecognizeItem(photo(1))], UnobservedRun())
    assert isinstance(alone, RecognizeResult)
    assert together[1].confidence == pytest.approx(alone.confidence, abs=1e-4)
    assert [each.name for each in together[1].objects] == [each.name for each in alone.objects]
    assert {each.name for each in alone.objects} <= {concept.en[0] for concept in OBJECTS}
    first = alone.objects[0]
    assert first.attributes_zh["colour"].endswith("色")
    assert first.action
    assert alone.scene_zh
    assert [each.confidence for each in alone.objects] == sorted((o.confidence for o in alone.objects), reverse=True)


def test_labels_of_ones_own_are_what_is_found(loaded: Load, tmp_path: Path) -> None:
    [found] = loaded(ClipRecognizer, "clip", "?threshold=0&labels=red cat|snow").run(
        [RecognizeItem(photo(0))], UnobservedRun()
    )
    assert {each.name for each in found.objects} == {"red cat", "snow"}
    assert sum(each.confidence for each in found.objects) == pytest.approx(1, abs=1e-3)
    assert found.scene is None
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"objects": [["traffic light", "红绿灯"]], "attributes": {"state": ["red", "green"]}}))
    [found] = loaded(ClipRecognizer, "clip", f"?labels={file}").run([RecognizeItem(photo(0))], UnobservedRun())
    [light] = found.objects
    assert (light.name, light.name_zh, light.action) == ("traffic light", "红绿灯", None)
    assert light.attributes["state"] in ("red", "green")


def test_nothing_is_found_below_the_threshold(loaded: Load) -> None:
    [found] = loaded(ClipRecognizer, "clip", "?threshold=1.1").run([RecognizeItem(photo(0))], UnobservedRun())
    assert found.objects == ()
    assert found.out_of_domain


# ── starting ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("engine", "name"),
    [(DiffusersGenerator, "stable_diffusion_xl"), (TransformersDescriber, "blip"), (ClipMatcher, "clip")],
)
def test_an_engine_tells_its_size_and_the_limit_of_a_batch(loaded: Load, engine: type, name: str) -> None:
    tiny = loaded(engine, name)
    assert isinstance(tiny, Heavy)
    assert 100_000 < tiny.weights() < 10_000_000
    assert tiny.batch_limit(tiny.example()) >= 2
    assert loaded(engine, name, "?batch=3").batch_limit(tiny.example()) == 3
    assert len(tiny.run([tiny.example()] * 2, UnobservedRun())) == 2


def test_larger_pictures_and_longer_texts_share_a_batch_with_fewer(loaded: Load) -> None:
    generator = loaded(DiffusersGenerator, "stable_diffusion", "?batch=8")
    assert generator.batch_limit(GenerateItem(PROMPT, 1, width=64, height=64)) == 2
    describer = loaded(TransformersDescriber, "blip", "?batch=8")
    assert describer.batch_limit(DescribeItem(photo(0), max_tokens=256)) == 2


def refusal(engine: type, text: str) -> str:
    with pytest.raises(EngineStartFailed) as caught:
        load(engine, text)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_named() -> None:
    assert "there is no folder /no/such/folder" in refusal(ClipMatcher, "clip:/no/such/folder")


@pytest.mark.parametrize("revision", ["", "@main", "@abc123"])
def test_a_checkpoint_from_the_hub_has_to_be_pinned(revision: str) -> None:
    said = refusal(DiffusersGenerator, f"diffusers:nobody/nothing{revision}")
    assert "needs a pinned revision" in said
    assert "TUWEN_UNPINNED" in said


def test_a_checkpoint_that_is_not_in_the_cache_cannot_be_had_offline() -> None:
    for engine, scheme in ((DiffusersGenerator, "diffusers"), (ClipMatcher, "clip")):
        said = refusal(engine, f"{scheme}:nobody/nothing@{'0' * 40}")
        assert "not in this machine's cache" in said
        assert f"hf download nobody/nothing --revision {'0' * 40}" in said


def test_a_checkpoint_of_the_other_library_is_sent_to_its_setting(tiny: Callable[[str], Path]) -> None:
    assert "TUWEN_GENERATE=diffusers:" in refusal(ClipMatcher, f"clip:{tiny('stable_diffusion')}")
    said = refusal(DiffusersGenerator, f"diffusers:{tiny('blip')}")
    assert "BlipForConditionalGeneration" in said
    assert "TUWEN_DESCRIBE=transformers:" in said


def test_a_model_of_the_wrong_kind_is_named(tiny: Callable[[str], Path]) -> None:
    assert "a clip model writes no text about images" in refusal(TransformersDescriber, f"transformers:{tiny('clip')}")
    assert "a qwen2_vl model does not compare" in refusal(ClipRecognizer, f"clip:{tiny('qwen2_vl')}")


def test_a_pipeline_that_makes_no_pictures_from_text_is_named(copied: Callable[[str], Path]) -> None:
    folder = copied("stable_diffusion")
    change_json(folder / "model_index.json", _class_name="DanceDiffusionPipeline")
    assert "DanceDiffusionPipeline is no text-to-image pipeline" in refusal(DiffusersGenerator, f"diffusers:{folder}")


def test_code_from_a_checkpoint_is_not_run(copied: Callable[[str], Path]) -> None:
    folder = copied("stable_diffusion")
    change_json(folder / "model_index.json", _class_name=["pipeline", "TheirPipeline"])
    assert "brings Python code of its own" in refusal(DiffusersGenerator, f"diffusers:{folder}")
    folder = copied("clip")
    marker = folder / "ran"
    (folder / "theirs.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    change_json(
        folder / "config.json",
        model_type="theirs",
        auto_map={"AutoConfig": "theirs.Config", "AutoModelForZeroShotImageClassification": "theirs.Model"},
    )
    assert "code of its own" in refusal(ClipMatcher, f"clip:{folder}")
    assert not marker.exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_pickled_weights_are_refused(copied: Callable[[str], Path], part: str) -> None:
    folder = copied("stable_diffusion")
    [weights] = (folder / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    said = refusal(DiffusersGenerator, f"diffusers:{folder}")
    assert f"{part} has its weights as {weights.stem}.bin, a pickle" in said
    assert "save_pretrained" in said


def test_broken_weights_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("blip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights} is broken" in refusal(TransformersDescriber, f"transformers:{folder}")
    weights.write_bytes(b"<!doctype html>")
    assert f"{weights} is broken" in refusal(TransformersDescriber, f"transformers:{folder}")


def test_missing_files_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("clip")
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(ClipMatcher, f"clip:{folder}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refusal(ClipMatcher, f"clip:{folder}")
    (folder / "config.json").write_text("{")
    assert "config.json is broken" in refusal(ClipMatcher, f"clip:{folder}")
    folder = copied("stable_diffusion")
    shutil.rmtree(folder / "vae")
    assert "its model_index.json names vae" in refusal(DiffusersGenerator, f"diffusers:{folder}")


@pytest.mark.parametrize(
    ("engine", "name", "option", "said"),
    [
        (DiffusersGenerator, "stable_diffusion", "stepps=3", "no option is called stepps; there are batch, compile"),
        (DiffusersGenerator, "stable_diffusion", "scheduler=Best", "diffusers has no scheduler Best"),
        (DiffusersGenerator, "stable_diffusion", "scheduler=FlowMatchEuler", "cannot take the place of"),
        (DiffusersGenerator, "stable_diffusion", "size=33x32", "multiples of 2"),
        (DiffusersGenerator, "stable_diffusion", "size=big", "WIDTHxHEIGHT"),
        (DiffusersGenerator, "stable_diffusion", "dtype=int8", "there are float32"),
        (DiffusersGenerator, "stable_diffusion", "compile=fast", "there are default"),
        (DiffusersGenerator, "stable_diffusion", "lora=/no/where", "no such .safetensors file"),
        (TransformersDescriber, "blip", "batch=many", "batch=many is no number"),
        (ClipRecognizer, "clip", "labels=/no/where.json", "cannot be read"),
        (ClipRecognizer, "clip", "labels=|", "names nothing"),
        (ClipRecognizer, "clip", "template=cat", "has to hold {}"),
    ],
)
def test_an_option_that_means_nothing_is_named(
    tiny: Callable[[str], Path], engine: type, name: str, option: str, said: str
) -> None:
    scheme = {DiffusersGenerator: "diffusers", TransformersDescriber: "transformers"}.get(engine, "clip")
    assert said in refusal(engine, f"{scheme}:{tiny(name)}?{option}")


def test_the_revision_of_a_folder_changes_with_its_content(copied: Callable[[str], Path]) -> None:
    folder = copied("clip")
    before = load(ClipMatcher, f"clip:{folder}").revision
    assert load(ClipMatcher, f"clip:{folder}").revision == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load(ClipMatcher, f"clip:{folder}").revision != before


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
