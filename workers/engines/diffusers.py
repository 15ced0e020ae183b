"""Text to image with any checkpoint of diffusers' text-to-image pipelines.

    diffusers:REPO_OR_FOLDER[@COMMIT][?OPTION=VALUE&…]

    steps, guidance, size        what a job that names none gets; size=1024x1024
    scheduler                    class of diffusers, such as DPMSolverMultistepScheduler; its ending is optional
    lora                         FILE.safetensors or FOLDER, with *0.8 behind it for its strength; several: a|b
    dtype, compile, variant      float32|float16|bfloat16; default|reduce-overhead|max-autotune; such as fp16
                                 (compiled at the start, for pictures of the model's own size)
    batch                        most images of one batch; found by measuring where it is not given
    pinned=1                     never evicted for another model; what is compiled is not, unless pinned=0

A seed gives the same noise in any batch: every image has a generator of its own, on the CPU, whose numbers do not
depend on the GPU. The kernels do, and on the size of the batch: pictures look alike, and their bytes may differ.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tuwen.engine import GenerateItem, Item, Picture, Run
from tuwen.errors import EngineError, EngineStartFailed, InvalidRequest, TuwenError
from tuwen.jobs import Kind
from workers.engines.checkpoint import Checkpoint
from workers.engines.placement import (
    BatchSize,
    Compilation,
    UnobservedRun,
    number,
    precision,
    require_known_options,
    weight_bytes,
)
from workers.engines.previews import Colours, PreviewPainter
from workers.engines.prompts import PromptReader

OPTIONS = ("compile", "steps", "guidance", "size", "scheduler", "lora")
LARGEST = 2
"""Times a model's own side that a picture may be wide or tall; beyond, models repeat themselves."""
SMALLEST = 4
"""A picture's side is at least the model's own divided by this."""
TRIAL_STEPS = 2

logger = logging.getLogger(__name__)

# Our own results say what was cut, and the engine process tells how far loading is.
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class _Unwanted(Exception):
    """Nobody waits for any picture of the batch any more."""


if TYPE_CHECKING:  # diffusers loads its classes when they are first named
    StepListener = Callable[[diffusers.DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
    """Called after each step, with the pipeline, the step, its time, and the tensors that it returns for the next."""


class DiffusersGenerator:
    """A text-to-image pipeline of diffusers, with the options that the module's docstring lists."""

    kind: ClassVar = Kind.GENERATE
    layout: ClassVar = "pipeline"

    def __init__(self, device: str, checkpoint: Checkpoint):
        """
        Raises:
            EngineStartFailed: not a text-to-image pipeline, or an option means nothing.
        """
        options = checkpoint.options
        require_known_options(options, OPTIONS)
        self.device = device
        self.revision = checkpoint.revision
        self.pipeline = _load(checkpoint, precision(device, options))
        self.parameters = inspect.signature(self.pipeline.__call__).parameters
        if "scheduler" in options:
            self.pipeline.scheduler = choose_scheduler(self.pipeline.scheduler, options["scheduler"])
        if "lora" in options:
            self.revision += "".join(f"+{name}" for name in _add_loras(self.pipeline, options["lora"]))
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.compilation = Compilation(options)
        _arrange(self.pipeline, device)
        self.reader = PromptReader(self.pipeline, self.parameters)
        self.sides = Sides.of(self.pipeline)
        self.defaults = self._defaults(options)
        self.batch = BatchSize.of(device, options, start=4, most=64)
        self.colours: Colours | None = None
        try:
            self.colours = Colours.of(self.pipeline)
        except (ValueError, AttributeError, RuntimeError) as error:  # it can make pictures all the same
            self.unseen = f"this model shows no previews: {error}"
            logger.warning("%s: %s", self.revision, self.unseen)

    def _defaults(self, options: Mapping[str, str]) -> GenerateItem:
        width, _, height = options.get("size", f"{self.sides.own}x{self.sides.own}").partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise EngineStartFailed(f"size={options['size']}: write WIDTHxHEIGHT, such as 1024x1024")
        item = GenerateItem("a black cat jumping on the grass", seed=0, width=int(width), height=int(height))
        if (error := self.sides.refusal(item)) is not None:
            raise EngineStartFailed(f"size={width}x{height}: {error}")
        steps = int(number(options, "steps", 0)) or None
        guidance = number(options, "guidance", 0) if "guidance" in options else None
        return GenerateItem(item.prompt, 0, "", item.width, item.height, steps, guidance)

    def example(self) -> Item:
        return GenerateItem(self.defaults.prompt, seed=0, steps=TRIAL_STEPS)

    def weights(self) -> int:
        """Bytes of all networks of the pipeline."""
        return weight_bytes(part for part in self.pipeline.components.values() if isinstance(part, nn.Module))

    def calibrate(self, room: int) -> None:
        """Find the size of a batch of the model's own picture size that fits into `room` bytes."""
        with self.compilation.reopen():
            self.batch.measure(self._try, room)

    def compile(self) -> None:
        """Compile the network that runs in every step, where the option `compile` is given."""
        if (denoiser := _denoiser(self.pipeline)) is not None:
            self.compilation.run([denoiser], self._try, self.batch.best)

    def _try(self, count: int) -> None:
        self.run([self.example()] * count, UnobservedRun())

    def batch_limit(self, item: Item) -> int:
        """Most pictures of a batch: fewer, the larger they are."""
        [wanted] = _generate_items([item])
        own = (self.defaults.width or 1) * (self.defaults.height or 1)
        width, height = self._size(wanted)
        return self.batch.limit(width * height / own)

    @torch.inference_mode()
    def run(self, items: Sequence[Item], run: Run) -> Sequence[Picture | TuwenError]:
        """Generate all pictures in one call of the pipeline; stops between steps when nobody waits for any of them."""
        wanted = _generate_items(items)
        if (refusal := self.sides.refusal(wanted[0])) is not None:
            return [refusal] * len(wanted)
        painter = None
        if self.colours is not None and any(item.previews for item in wanted):
            painter = PreviewPainter(self.pipeline, self.colours, wanted, *self._size(wanted[0]))
        try:
            with self.compilation.forbid_more(), nullcontext() if painter is None else painter.observe():
                made = self.pipeline(**self._arguments(wanted, self._listener(run, len(wanted), painter)))
        except _Unwanted:
            return [EngineError("cancelled")] * len(wanted)
        flagged = getattr(made, "nsfw_content_detected", None) or [False] * len(wanted)
        return [self._picture(*each) for each in zip(wanted, made.images, flagged, strict=True)]

    def _size(self, item: GenerateItem) -> tuple[int, int]:
        return item.width or self.defaults.width or 0, item.height or self.defaults.height or 0

    def _arguments(self, wanted: list[GenerateItem], listener: StepListener) -> dict[str, object]:
        """The arguments of the pipeline's call, without those that it does not take or that nobody chose."""
        first = wanted[0]
        width, height = self._size(first)
        negative = [item.negative_prompt for item in wanted]
        arguments = {
            "prompt": [item.prompt for item in wanted],
            # None and "" differ: SDXL takes zeros for the one and reads the other. See GenerateItem.batch_key.
            "negative_prompt": negative if any(negative) else None,
            "width": width,
            "height": height,
            "num_inference_steps": first.steps or self.defaults.steps,
            "guidance_scale": self.defaults.guidance if first.guidance is None else first.guidance,
            "generator": [torch.Generator().manual_seed(item.seed) for item in wanted],
            "output_type": "pt",
            "callback_on_step_end": listener,
        }
        return {name: value for name, value in arguments.items() if value is not None and name in self.parameters}

    def _listener(self, run: Run, count: int, painter: PreviewPainter | None) -> StepListener:
        def on_step_end(
            pipeline: diffusers.DiffusionPipeline, step: int, _timestep: Tensor, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            steps = pipeline.num_timesteps
            run.progress(step + 1, steps, None if painter is None else painter.at(step + 1, steps))
            if all(run.cancelled(index) for index in range(count)):
                raise _Unwanted
            return tensors

        return on_step_end

    def _picture(self, item: GenerateItem, image: Tensor, flagged: bool) -> Picture | TuwenError:
        """Convert float (3, H, W) in [0, 1] to 8 bits, or to an error that says why it is not a picture."""
        if not torch.isfinite(image).all():
            return EngineError("the model made not-a-number instead of a picture: " + _OVERFLOW)
        if flagged:
            return EngineError("the checkpoint's own safety checker withheld the picture")
        if not image.any():
            return EngineError("the model made a picture that is all black: " + _OVERFLOW)
        pixels = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Picture(np.ascontiguousarray(pixels), warnings=tuple(self._warnings(item)))

    def _warnings(self, item: GenerateItem) -> list[str]:
        found = self.reader.warn_of_cut("prompt", item.prompt) + self.reader.warn_of_cut(
            "negative prompt", item.negative_prompt
        )
        if item.negative_prompt and not self.reader.heeds_negative_prompt:
            found.append("this model takes no negative prompt: it was ignored")
        if item.previews and self.colours is None:
            found.append(self.unseen)
        return found


_OVERFLOW = "its numbers overflow at this precision, or its weights are broken; try dtype=float32 among its options"


class Sides:
    """The widths and heights that a model can make, in pixels."""

    def __init__(self, own: int, multiple: int):
        self.own = own
        self.multiple = multiple
        self.least = math.ceil(own / SMALLEST / multiple) * multiple
        self.most = own * LARGEST

    @classmethod
    def of(cls, pipeline: diffusers.DiffusionPipeline) -> Sides:
        """Derive them from the sizes of the model's latent image, and of a transformer's patches of it."""
        denoiser = _denoiser(pipeline)
        pixels = getattr(pipeline, "vae_scale_factor", 8)  # of one latent
        patch = getattr(denoiser.config, "patch_size", 1) if denoiser is not None else 1
        processor = getattr(pipeline, "image_processor", None)
        padded = processor.config.vae_scale_factor if processor is not None else pixels
        multiple = math.lcm(pixels * (patch if isinstance(patch, int) else 1), padded)
        latents = getattr(pipeline, "default_sample_size", None) or getattr(
            getattr(denoiser, "config", None), "sample_size", None
        )
        if isinstance(latents, (list, tuple)):
            latents = latents[0]
        sides = cls(latents * pixels if latents else 1024, multiple)
        most = getattr(getattr(denoiser, "config", None), "pos_embed_max_size", None)  # SD3's patches with a position
        if most:
            sides.most = min(sides.most, most * pixels * patch)
        return sides

    def refusal(self, item: GenerateItem) -> InvalidRequest | None:
        """Return why the item cannot be made; None if it can."""
        for name, side in (("width", item.width), ("height", item.height)):
            if side is not None and (side % self.multiple or not self.least <= side <= self.most):
                return InvalidRequest(
                    f"the model cannot make a {name} of {side}: it takes multiples of {self.multiple} "
                    f"from {self.least} to {self.most}, best {self.own}",
                    field=f"input.{name}",
                )
        return None


def choose_scheduler(present: diffusers.SchedulerMixin, name: str) -> diffusers.SchedulerMixin:
    """Make the scheduler called `name`, with the settings of the checkpoint's own.

    Raises:
        EngineStartFailed: there is none of that name, or it cannot replace this one.
    """
    endings = ("", "Scheduler", "DiscreteScheduler", "MultistepScheduler")
    found = next((getattr(diffusers, name + end) for end in endings if hasattr(diffusers, name + end)), None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        others = sorted(each.__name__ for each in present.compatibles)
        raise EngineStartFailed(f"diffusers has no scheduler {name}; this model can use {', '.join(others)}")
    if found not in (type(present), *present.compatibles):
        raise EngineStartFailed(f"{found.__name__} cannot take the place of {type(present).__name__}")
    scheduler: type[diffusers.SchedulerMixin] = found
    return scheduler.from_config(present.config)


def _generate_items(items: Sequence[Item]) -> list[GenerateItem]:
    return [item for item in items if isinstance(item, GenerateItem)]


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
    name = checkpoint.config.get("_class_name")
    try:
        return diffusers.AutoPipelineForText2Image.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant=checkpoint.options.get("variant"),
        )
    except ValueError as error:
        if "AutoPipeline can't find" in str(error):
            raise EngineStartFailed(f"{name} is no text-to-image pipeline, which TUWEN_GENERATE needs") from error
        raise


def _denoiser(pipeline: diffusers.DiffusionPipeline) -> diffusers.ModelMixin | None:
    """The network that runs in every step."""
    for name in ("transformer", "unet", "prior"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    return None


def _add_loras(pipeline: diffusers.DiffusionPipeline, text: str) -> list[str]:
    """Fuse the LoRAs into the weights, where they cost no time. Returns their names."""
    places = [each.partition("*") for each in text.split("|")]
    names = [f"lora{index}" for index in range(len(places))]
    if not hasattr(pipeline, "load_lora_weights"):
        raise EngineStartFailed(f"{type(pipeline).__name__} takes no LoRA")
    for name, (place, _, _strength) in zip(names, places, strict=True):
        path = Path(place).expanduser()
        if not path.exists() or path.suffix not in ("", ".safetensors"):
            raise EngineStartFailed(f"lora={place}: there is no such .safetensors file, or folder with one")
        try:
            pipeline.load_lora_weights(
                path.parent if path.is_file() else path,
                weight_name=path.name if path.is_file() else None,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise EngineStartFailed(f"lora={place} does not fit this model: {error}") from error
    pipeline.set_adapters(names, [number({place: strength or "1"}, place, 1) for place, _, strength in places])
    pipeline.fuse_lora(adapter_names=names)
    pipeline.unload_lora_weights()
    return [f"{Path(place).stem}*{strength or 1}" for place, _, strength in places]


def _arrange(pipeline: diffusers.DiffusionPipeline, device: str) -> None:
    """Set the layout in memory; attention is torch's SDPA by diffusers' default."""
    denoiser, autoencoder = _denoiser(pipeline), getattr(pipeline, "vae", None)
    for network in (denoiser, autoencoder):
        if network is not None and device != "cpu":  # what a GPU's convolutions are fastest with
            network.to(memory_format=torch.channels_last)
    if autoencoder is not None and device != "cpu" and hasattr(autoencoder, "enable_slicing"):
        autoencoder.enable_slicing()  # decoding takes the most memory, and is as fast image by image
