"""Checkpoints through the whole system against their library called directly: `python -m tests.bench checkpoints`.

On a GPU at full size, SDXL at 1024×1024 with 30 steps and BLIP large with 64 tokens; without one at toy size, where
only the share that the queue costs means anything. What needs torch runs in processes of its own:
`python -m tests.bench.checkpoints make|pipeline|engine …`, each of which prints one JSON value.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from PIL import Image

from shared.settings import Settings
from tests.bench.figures import Figure
from tests.bench.worker import EXAMPLE_SIDE, measure_between_peers, rate
from tests.support.scenes import EXAMPLE
from tuwen.jobs import Kind
from workers.lab.world.render import render

PROMPT = "a black cat on grass"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the models are, and how much is done with them."""

    device: str
    modules: str
    """The module with the builders of the checkpoints."""
    generator: str
    describer: str
    steps: int
    size: int
    tokens: int
    batches: tuple[int, ...]
    """Sizes among which the bare library's best is sought."""
    count: dict[Kind, int]
    """Jobs of each kind that is measured."""
    seconds: float = 5.0
    """How long the bare library is watched at least."""

    def options(self, kind: Kind) -> str:
        return f"steps={self.steps}&size={self.size}x{self.size}" if kind is Kind.GENERATE else ""


TOY = Scale(
    device="cpu",
    modules="tests.support.checkpoints",
    generator="stable_diffusion_xl",
    describer="blip",
    steps=12,
    size=64,
    tokens=64,
    batches=(4, 8),
    count={Kind.GENERATE: 320, Kind.DESCRIBE: 1280},
    seconds=15.0,
)
FULL = Scale(
    device="cuda:0",
    modules="tests.bench.full_size",
    generator="stable_diffusion_xl",
    describer="blip_large",
    steps=30,
    size=1024,
    tokens=64,
    batches=(1, 2, 4, 8, 16, 32, 64),
    count={Kind.GENERATE: 64, Kind.DESCRIBE: 2000},
)


def checkpoints(settings: Settings, folder: Path) -> list[Figure]:
    """Measure at full size where there is a GPU, otherwise at toy size."""
    found = subprocess.run([sys.executable, "-m", "workers", "devices"], stdout=subprocess.PIPE, check=True).stdout
    return figures(settings, folder, FULL if found.split() else TOY)


def figures(settings: Settings, folder: Path, scale: Scale) -> list[Figure]:
    """Measure the kinds that `scale.count` has jobs of."""
    settings = settings.model_copy(update={"device": scale.device, "engine_start_timeout": 1800.0})
    found = []
    if Kind.DESCRIBE in scale.count:
        spec = f"transformers:{_make_once(scale, folder, scale.describer)}"
        found += _kind(settings, folder, scale, Kind.DESCRIBE, spec)
    if Kind.GENERATE in scale.count:
        spec = f"diffusers:{_make_once(scale, folder, scale.generator)}"
        found += _kind(settings, folder, scale, Kind.GENERATE, spec)
        found += _two_models(settings, folder, scale)
    return found


def _kind(settings: Settings, folder: Path, scale: Scale, kind: Kind, spec: str) -> list[Figure]:
    """Measure one model: through the queue, alone, in larger batches, compiled."""
    on_gpu = scale.device != "cpu"
    alone = {size: float(_child("pipeline", spec, scale, kind, size)) for size in scale.batches}
    best = max(alone, key=alone.__getitem__)
    # On a CPU nothing is measured at the start; so that both sides run the same batches, the size is given.
    options = "&".join(part for part in (scale.options(kind), "" if on_gpu else f"batch={best}") if part)
    served = f"{spec}?{options}" if options else spec
    busy: list[float] = []

    def queue() -> float:
        with _sample_gpu(busy) if on_gpu else nullcontext():
            return rate(settings.model_copy(update={kind.value: served}), folder, kind, scale.count[kind])

    bare, queued = measure_between_peers(lambda: float(_child("pipeline", spec, scale, kind, best)), queue)
    goal = "≥ 0.97" if on_gpu else "≥ 0.9"
    found = [Figure(f"{kind}, through the queue", queued, "images/s", f"bare, batches of {best}", bare, goal)]
    if not on_gpu:
        return found
    compile_it = f"{served}{'&' if options else '?'}compile=default"
    plain, compiled = (_child("engine", each, scale, kind) for each in (served, compile_it))
    return [
        *found,
        # The samples that saw it work: the worker's start is not what is asked about.
        Figure(f"{kind}, GPU busy meanwhile", mean([each for each in busy if each > 0] or [0.0]), "%"),
        Figure(f"{kind}, batches of {best}", alone[best], "images/s", "bare, batches of 1", alone[1]),
        Figure(f"{kind}, compiled", compiled["rate"], "images/s", "engine as it is", plain["rate"]),
        Figure(f"{kind}, cold start to ready", plain["start"], "s", "compiled", compiled["start"]),
    ]


def _two_models(settings: Settings, folder: Path, scale: Scale) -> list[Figure]:
    """Jobs for two generators in turn, under a budget that holds one and a half, against one of them alone."""
    one, two = (folder / name for name in ("one", "two"))
    for link in (one, two):
        if not link.exists():
            link.symlink_to(_make_once(scale, folder, scale.generator))
    batch = "" if scale.device != "cpu" else "&batch=4"
    specs = [f"diffusers:{link}?{scale.options(Kind.GENERATE)}{batch}" for link in (one, two)]
    weights = sum(file.stat().st_size for file in one.rglob("*.safetensors"))
    count = scale.count[Kind.GENERATE]
    alone = rate(settings.model_copy(update={"generate": specs[0]}), folder, Kind.GENERATE, count)
    both = settings.model_copy(update={"generate": ",".join(specs), "memory_budget": int(weights * 1.5)})
    together = rate(both, folder, Kind.GENERATE, count, models=("one", "two"))
    return [Figure("two generators, budget for 1.5", together, "images/s", "one of them", alone)]


def _make_once(scale: Scale, folder: Path, name: str) -> Path:
    """The checkpoint of that name, made when it is not there yet."""
    target = folder / f"checkpoint-{name}"
    if not target.exists():
        _run("make", scale.modules, name, str(target))
    return target


@contextmanager
def _sample_gpu(samples: list[float]) -> Iterator[None]:
    """Add to `samples` how busy the GPU is, in percent, twice a second."""
    over = threading.Event()

    def sample() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not over.wait(0.5):
            samples.append(float(subprocess.run(query, capture_output=True, text=True, check=True).stdout))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


# ── in processes of their own ─────────────────────────────────────────────────────────────────────


def _child(what: str, spec: str, scale: Scale, kind: Kind, size: int = 0) -> Any:
    return _run(
        what,
        spec,
        scale.device,
        kind.value,
        str(scale.steps),
        str(scale.size),
        str(scale.tokens),
        str(size),
        str(scale.seconds),
    )


def _run(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.checkpoints", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def make(module: str, name: str, target: str) -> str:
    from importlib import import_module

    return str(getattr(import_module(module), name)(Path(target)))


def pipeline(spec: str, device: str, kind: str, steps: str, size: str, tokens: str, batch: str, seconds: str) -> float:
    """Images per second of the library called as its documentation does, with batches of one size."""
    import torch

    _, _, folder = spec.partition(":")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if device == "cpu":
        from workers.inference.cores import usable_cores

        torch.set_num_threads(usable_cores())
    call = (
        _generating(folder, device, dtype, int(steps), int(size), int(batch))
        if kind == Kind.GENERATE.value
        else _describing(folder, device, dtype, int(tokens), int(batch))
    )
    call()
    rounds, started = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < float(seconds):
        call()
        rounds += 1
    return rounds * int(batch) / (time.perf_counter() - started)


def _generating(folder: str, device: str, dtype: Any, steps: int, size: int, batch: int) -> Callable[[], Any]:
    import torch
    from diffusers import AutoPipelineForText2Image

    generate = AutoPipelineForText2Image.from_pretrained(folder, dtype=dtype).to(device)
    generate.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    return lambda: generate([PROMPT] * batch, num_inference_steps=steps, width=size, height=size, generator=generators)


def _describing(folder: str, device: str, dtype: Any, tokens: int, batch: int) -> Callable[[], Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device)
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(render(EXAMPLE, EXAMPLE_SIDE))

    @torch.inference_mode()
    def describe() -> Any:
        inputs = processor(images=[image] * batch, return_tensors="pt").to(device, dtype)
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return processor.batch_decode(written, skip_special_tokens=True)

    return describe


def engine(spec: str, device: str, kind: str, *_: str) -> dict[str, float]:
    """Seconds from nothing to a warm engine process, and its images per second in batches of its own size."""
    from tests.support.fakes import painted
    from tuwen.engine import DescribeItem, GenerateItem
    from workers.inference.process import EngineProcess

    process = EngineProcess({Kind(kind): spec}, device, start_timeout=1800.0)
    started = time.perf_counter()
    process.start()
    ready = time.perf_counter() - started
    item = GenerateItem(PROMPT, 0) if kind == Kind.GENERATE.value else DescribeItem(painted("nothing", 384))
    items = [item] * process.limit(Kind(kind), item)
    process.run(Kind(kind), items)
    started = time.perf_counter()
    for _round in range(3):
        process.run(Kind(kind), items)
    found = {"start": ready, "rate": 3 * len(items) / (time.perf_counter() - started)}
    process.stop()
    return found


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps({"make": make, "pipeline": pipeline, "engine": engine}[name](*arguments)))  # noqa: T201
