"""Small pictures of what a diffusion model is about to make, from real pipelines with random weights."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shared.model_specs import parse_models
from tuwen.engine import PREVIEW_SIDE, GenerateItem, Picture, SoFar
from workers.engines.checkpoint import locate
from workers.engines.diffusers import DiffusersGenerator
from workers.engines.placement import UnobservedRun
from workers.engines.previews import Colours, _decode, clean
from workers.inference.policy import Policy
from workers.jobs.pictures import PREVIEW_LENGTH, preview_url

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIDES = {"stable_diffusion": 32, "stable_diffusion_xl": 32, "stable_diffusion_3": 32, "flux": 64}


@pytest.fixture(scope="session")
def engine(tiny: Callable[[str], Path]) -> Callable[[str], DiffusersGenerator]:
    def loaded(name: str) -> DiffusersGenerator:
        [spec] = parse_models(f"diffusers:{tiny(name)}?size={SIDES[name]}x{SIDES[name]}")
        return DiffusersGenerator("cpu", locate(spec, "pipeline", Policy(), lambda *_: None))

    return cache(loaded)


class Watching(UnobservedRun):
    """Sees what there is of each item after each step."""

    def __init__(self, count: int):
        self.seen: list[list[Any]] = [[] for _ in range(count)]

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        for index, seen in enumerate(self.seen):
            seen.append(so_far(index) if so_far is not None else None)


@pytest.mark.parametrize("name", SIDES)
def test_each_item_is_seen_at_the_steps_that_it_asked_for_and_comes_out_the_same(
    engine: Callable[[str], DiffusersGenerator], name: str
) -> None:
    items = [GenerateItem("a cat", seed, steps=6, previews=every) for seed, every in enumerate((0, 1, 2, 4))]
    run = Watching(len(items))
    made = engine(name).run(items, run)
    seen = [[step for step, pixels in enumerate(each, 1) if pixels is not None] for each in run.seen]
    assert seen == [[], [1, 2, 3, 4, 5], [2, 4], [4]]  # the sixth is the picture
    last = run.seen[1][4]
    assert (last.shape, last.dtype) == ((SIDES[name] // 2, SIDES[name] // 2, 3), np.uint8)
    plain = engine(name).run([GenerateItem("a cat", 1, steps=6)], Watching(1))
    assert (np.abs(plain[0].pixels.astype(int) - made[1].pixels) <= 1).all()  # type: ignore[union-attr]


class LinearDecoder(torch.nn.Module):
    """A decoder of which the best map is known: each pixel is a mixture of its latent's channels."""

    def __init__(self, channels: int, **config: Any):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.mixture = torch.nn.Conv2d(channels, 3, 1)
        torch.nn.init.normal_(self.mixture.weight, std=0.1 * config.get("scaling_factor", 1.0))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def decode(self, latents: Tensor) -> Any:
        still = latents.squeeze(2) if hasattr(self.config, "z_dim") else latents
        pictures = functional.interpolate(self.mixture(still), scale_factor=8)
        return SimpleNamespace(sample=pictures.unsqueeze(2) if hasattr(self.config, "z_dim") else pictures)


@pytest.mark.parametrize(
    "config",
    [
        {"latent_channels": 4, "scaling_factor": 0.13025},
        {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"latent_channels": 4, "scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [1, 2, 1, 2]},
        {"z_dim": 3, "latents_mean": [0.5, -0.5, 0.25], "latents_std": [2.0, 1.0, 0.5]},
    ],
    ids=["SDXL", "SD3", "means", "films"],
)
def test_the_map_is_that_of_the_decoder(config: dict[str, Any]) -> None:
    torch.manual_seed(11)
    channels = config.get("latent_channels") or config["z_dim"]
    decoder = LinearDecoder(channels, **config)
    latents = torch.randn(1, channels, 8, 8) / 4
    truth = (functional.adaptive_avg_pool2d(_decode(decoder, latents), 8)[0].movedim(0, -1) + 1) * 127.5
    pixels = Colours.of(SimpleNamespace(vae=decoder)).paint(latents[0])
    assert truth.std() > 3
    assert np.abs(truth.numpy() - pixels).max() <= 2


def test_a_large_picture_is_seen_small_and_what_is_none_not_at_all() -> None:
    colours = Colours(torch.tensor([[100.0, 0, 0], [0, 0, 100], [50, 50, 50]]))
    latent = torch.stack([torch.ones(300, 200), torch.full((300, 200), -1.0)])
    pixels = colours.paint(latent)
    assert pixels is not None
    assert max(pixels.shape) <= PREVIEW_SIDE
    assert (pixels == (150, 50, 0)).all()
    assert colours.paint(torch.full((2, 4, 4), torch.nan)) is not None
    assert colours.paint(torch.zeros(3, 4, 4)) is None


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DDIMScheduler", {"clip_sample": False}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
    ],
)
def test_what_the_model_foresees_is_seen_through_the_noise(scheduler: str, options: dict[str, Any]) -> None:
    """A model that knows the truth foresees it in every step; noise would be seen at once."""
    plan = getattr(diffusers, scheduler)(**options)
    plan.set_timesteps(8)
    truth, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    flows = scheduler.startswith("FlowMatch")
    sample = noise * (1 if flows else plan.init_noise_sigma)
    for timestep in plan.timesteps:
        if flows:
            output = (sample - truth) / (timestep / plan.config.num_train_timesteps)
        else:
            share = plan.alphas_cumprod[int(timestep)]
            output = (plan.scale_model_input(sample, timestep) - share.sqrt() * truth) / (1 - share).sqrt()
        taken = plan.step(output, timestep, sample, return_dict=False)
        assert (clean(plan, output, timestep, sample, taken) - truth).abs().max() < 0.02, timestep
        sample = taken[0]


def test_a_model_that_cannot_be_previewed_draws_all_the_same(engine: Callable[[str], DiffusersGenerator]) -> None:
    pipeline = engine("stable_diffusion_xl").pipeline
    with pytest.raises(ValueError, match="no autoencoder"):
        Colours.of(SimpleNamespace())
    pipeline.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not-a-number"):
        Colours.of(pipeline)
    pipeline.vae.decoder.conv_out.bias.data.fill_(0.0)


def test_a_picture_that_a_checker_has_to_see_first_is_not_previewed(tiny: Callable[[str], Path]) -> None:
    """The checkpoints of Stable Diffusion 1 are published so."""
    [spec] = parse_models(f"diffusers:{tiny('checked_stable_diffusion')}")
    generator = DiffusersGenerator("cpu", locate(spec, "pipeline", Policy(), lambda *_: None))
    run = Watching(1)
    [made] = generator.run([GenerateItem("a cat", 1, steps=3, previews=1)], run)
    assert run.seen == [[None] * 3]
    assert isinstance(made, Picture), made
    assert made.warnings == ("this model shows no previews: its safety checker has to see the whole picture first",)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_preview_is_a_small_url(noisy: bool) -> None:
    lot = np.random.default_rng(1)
    pixels = lot.integers(0, 256, (128, 128, 3), np.uint8) if noisy else np.full((128, 96, 3), 200, np.uint8)
    url = preview_url(pixels)
    assert len(url) <= PREVIEW_LENGTH
    head, _, data = url.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(BytesIO(b64decode(data))) as image:
        assert image.format == "WEBP"
        assert max(image.size) <= 128
        assert noisy or np.abs(np.asarray(image).astype(int) - 200).max() <= 3
