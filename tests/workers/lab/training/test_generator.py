"""The generator and what trains it, with fresh weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.lab.training.checkpoint import save_weights
from workers.lab.training.data import draw_pictures
from workers.lab.training.generator import (
    GeneratorRecipe,
    Rivals,
    paintings,
    plan_loss,
    reconstruction,
    texts,
    train_generator,
)
from workers.lab.world.latents import BACKGROUND_SIZE, INSTANCE_SIZE, LATENT_SIZE
from workers.models.discriminator import Discriminator
from workers.models.generator import (
    CELLS,
    OPEN,
    PLACE,
    THINGS,
    Generator,
    Painter,
    Planner,
    Shape,
    onto_canvas,
    things,
)
from workers.models.text import vocabulary
from workers.scenes.grammar import SLOT_SIZES, Scene, Thing, slots

SHAPE = Shape(len(vocabulary()), tuple(SLOT_SIZES), BACKGROUND_SIZE, INSTANCE_SIZE)
TEXTS = ("一只黑色的猫在草地上跳跃", "a black cat jumping on the grass", "three red cars on the snow", "")


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(SHAPE).eval()


def tokens(*said: str) -> Tensor:
    return torch.from_numpy(vocabulary().encode_batch(said))


def plan(scene: Scene) -> Tensor:
    return torch.from_numpy(slots(scene))[None]


def test_pictures_have_the_promised_shape(generator: Generator) -> None:
    pixels = generator.sample(tokens(*TEXTS), [0, 1, 2, 3])
    assert pixels.shape == (4, 64, 64, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert SHAPE.noise == LATENT_SIZE


def test_a_picture_depends_on_its_own_text_and_seed_alone(generator: Generator) -> None:
    together = generator.sample(tokens(*TEXTS), [5, 6, 7, 8]).astype(int)
    for index, (text, seed) in enumerate(zip(TEXTS, (5, 6, 7, 8), strict=True)):
        alone = generator.sample(tokens(text), [seed])[0].astype(int)
        # Sums run in another order in another batch shape: a level of rounding, no more.
        assert np.abs(alone - together[index]).max() <= 1


def test_seeds_and_texts_change_the_picture(generator: Generator) -> None:
    same, other_seed = generator.sample(tokens(TEXTS[0], TEXTS[0]), [1, 2])
    assert (same != other_seed).any()
    seeds = range(16)
    first, second = (generator.sample(tokens(*[text] * 16), seeds) for text in TEXTS[1:3])
    assert (first != second).any()


def test_the_plan_alone_decides_what_is_painted(generator: Generator) -> None:
    """Same plan and noise, same picture; another colour in the plan, another picture."""
    noise = torch.rand(1, SHAPE.noise) * 2 - 1
    black, white = (plan(Scene((Thing("cat", colour, "jumping"),), "grass")) for colour in ("black", "white"))
    with torch.no_grad():
        assert torch.equal(generator.painter(black, noise), generator.painter(black, noise))
        assert not torch.equal(generator.painter(black, noise), generator.painter(white, noise))


def test_things_of_a_plan_are_listed_with_their_cells() -> None:
    three = plan(Scene((Thing("car", "red", None, "small", 3),), "snow"))
    kinds, cells, present = things(three)
    assert present.tolist() == [[True, True, True, False]]
    assert kinds[0, :3].tolist() == [three[0, :4].tolist()] * 3
    assert cells[0, :3].tolist() == [3, 4, 5]
    pair = plan(Scene((Thing("cat", "red", "sitting"), Thing("dog", "blue", "running")), "sand", "left"))
    kinds, cells, present = things(pair)
    assert present.sum() == 2
    assert kinds[0, :2].tolist() == [pair[0, 0:4].tolist(), pair[0, 5:9].tolist()]
    # The first stands to the left of the second, even before anything is learnt.
    assert CELLS[cells[0, 0]][0] < CELLS[cells[0, 1]][0]


@pytest.mark.parametrize(
    ("counts", "relation", "cells"),
    [
        ((1, 0), 0, [0]),
        ((2, 0), 0, [1, 2]),
        ((4, 0), 0, [6, 7, 8, 9]),
        ((1, 1), 0, [10, 11]),
        ((1, 1), 4, [18, 19]),
        ((2, 1), 0, [3, 4, 5]),
        ((1, 3), 0, [6, 7, 8, 9]),
        ((2, 1), 1, [6, 8, 13]),
        ((1, 2), 3, [16, 8, 9]),
        ((2, 2), 2, [7, 9, 6, 8]),
        ((3, 3), 0, [6, 7, 8, 9]),
    ],
)
def test_things_have_cells_of_their_own(counts: tuple[int, int], relation: int, cells: list[int]) -> None:
    first, second = counts
    _, found, present = things(torch.tensor([[1, 1, 0, 1, first, 2 * (second > 0), 1, 0, 1, second, 1, relation]]))
    assert found[present].tolist() == cells


@pytest.mark.parametrize("relation", range(1, 5))
@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_cells_stand_in_the_relation(counts: tuple[int, int], relation: int) -> None:
    _, cells, present = things(torch.tensor([[1, 1, 0, 1, counts[0], 2, 1, 0, 1, counts[1], 1, relation]]))
    middles = torch.tensor(CELLS)[cells[present], :2]
    axis, sign = divmod(relation - 1, 2)
    apart = middles[counts[0] :, None, axis] - middles[None, : counts[0], axis]
    assert (apart * (1 - 2 * sign) > 0.1).all()


def test_what_is_settled_is_planned_and_the_rest_is_the_planners(generator: Generator) -> None:
    known = torch.full((3, len(SHAPE.plan)), OPEN)
    known[0] = plan(Scene((Thing("dog", "white", None, "small", 2),), "snow"))
    known[1, 1] = 5
    said = tokens(*TEXTS[:3])
    planned, noise = generator.plan(said, [1, 2, 3], known)
    free, same_noise = generator.plan(said, [1, 2, 3])
    assert planned[0].tolist() == known[0].tolist()
    assert (planned[1, 0], planned[1, 1]) == (free[1, 0], 5)
    assert planned[2].tolist() == free[2].tolist()
    assert noise.equal(same_noise)


def test_a_place_alone_has_nothing_in_it(generator: Generator) -> None:
    snow = torch.zeros(2, len(SHAPE.plan), dtype=torch.long)
    snow[:, PLACE] = 3
    planned, noise = generator.plan(tokens("snow", "snow"), [1, 2], snow)
    assert not things(planned)[2].any()
    cat = plan(Scene((Thing("cat", "black"),), "snow"))
    with torch.no_grad():
        empty = generator.painter(planned, noise)
        mixed = generator.painter(torch.cat([cat, planned[1:]]), noise)
    assert (mixed[1] - empty[1]).abs().max() < 1e-4
    assert (mixed[0] - empty[0]).abs().max() > 1e-2


def test_any_plan_can_be_painted(generator: Generator) -> None:
    """The planner may write nonsense: it must be painted, not crash."""
    plans = torch.stack([torch.randint(size, (64,)) for size in SHAPE.plan], 1)
    with torch.no_grad():
        painted = generator.painter(plans, torch.rand(64, SHAPE.noise) * 2 - 1)
    assert torch.isfinite(painted).all()
    assert things(plans)[1].max() < len(CELLS)
    assert things(plans)[2].sum(1).max() <= THINGS


def test_a_sprite_lands_in_its_frame_and_is_mirrored_by_a_negative_width() -> None:
    sprite = torch.full((1, 4, 64, 64), -1.0)
    sprite[:, :, :, 32:] = 1.0  # white and covering on the right half, nothing on the left
    plain = onto_canvas(sprite, torch.tensor([[0.75, 0.5, 0.25, 0.25]]))[0, 3]
    assert plain[16:48, 50:62].min() > 0.9
    assert plain[:, :46].max() < 0.1
    mirrored = onto_canvas(sprite, torch.tensor([[0.75, 0.5, -0.25, 0.25]]))[0, 3]
    assert mirrored[16:48, 34:46].min() > 0.9
    assert mirrored[:, 50:].max() < 0.1


def test_planning_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    planner = Planner(SHAPE)
    optimiser = torch.optim.AdamW(planner.parameters(), lr=2e-3)
    batch = texts(32, seed=1)(0)
    losses = []
    for _ in range(8):
        loss, _ = plan_loss(planner, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_painting_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    painter = Painter(SHAPE)
    optimiser = torch.optim.AdamW(painter.parameters(), lr=2e-3)
    plans, noise, truth = paintings(draw_pictures("train", 8, seed=1), 8, seed=1)(0)
    losses = []
    for _ in range(8):
        loss = reconstruction(painter(plans, noise), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_batches_depend_on_the_step_alone() -> None:
    for one, two in zip(texts(4, seed=1)(7), texts(4, seed=1)(7), strict=True):
        assert torch.equal(one, two)
    data = draw_pictures("train", 8, seed=1)
    for one, two in zip(paintings(data, 4, seed=1)(7), paintings(data, 4, seed=1)(7), strict=True):
        assert torch.equal(one, two)


def test_weights_are_loaded_with_their_shape(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_weights(path, generator.state_dict(), {"shape": asdict(SHAPE)}, half=True)
    loaded = Generator.load(path)
    assert loaded.shape == SHAPE
    assert not loaded.training
    for name, weight in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float()), name


def test_the_discriminator_looks_at_picture_and_plan() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(SHAPE.plan)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    plans = torch.cat([plan(Scene((Thing("cat", colour),), "grass")) for colour in ("black", "white")])
    logits = discriminator(images, plans)
    assert logits.shape == (2,)
    assert not torch.equal(logits, discriminator(images.flip(0), plans))
    assert not torch.equal(logits, discriminator(images, plans.flip(0)))


def test_rivals_pull_each_for_its_own_part() -> None:
    """The critic's loss gives the painter no gradient, nor the painter's loss the critic."""
    torch.manual_seed(0)
    rivals = Rivals(Painter(SHAPE), Discriminator(SHAPE.plan))
    batch = paintings(draw_pictures("train", 4, seed=1), 4, seed=1)(0)
    parts = rivals(*batch, 1.0, 1.0)
    painter, critic = (list(part.parameters()) for part in (rivals.painter, rivals.discriminator))

    def reached(loss: Tensor, parameters: list[torch.nn.Parameter]) -> bool:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in found)

    assert reached(parts["painter"], painter)
    assert not reached(parts["painter"], critic)
    for name in ("critic", "slope"):
        assert reached(parts[name], critic)
        assert not reached(parts[name], painter)


def test_a_generator_is_trained_in_slices_and_put_together(tmp_path: Path) -> None:
    """Its three phases, each cut and gone on with, end in weights that can be loaded and sampled."""
    recipe = GeneratorRecipe(
        steps=2, planner_steps=2, rival_steps=2, batch=2, planner_batch=2, planner_judged=2, validate_every=1
    )
    data, judged = draw_pictures("train", 4, seed=1), draw_pictures("validation", 2, seed=1)
    slices = 0
    while not train_generator(data, judged, tmp_path, recipe, minutes=0).finished:
        slices += 1
    assert slices > 2
    facts = json.loads((tmp_path / "weights.json").read_text())
    assert facts["step"].keys() == {"planner", "painter", "rivals"}
    assert facts["config"]["rival_weight"] == recipe.rival_weight
    assert Generator.load(tmp_path / "weights.safetensors").sample(tokens(TEXTS[0]), [1]).shape == (1, 64, 64, 3)


def test_losses_are_finite_in_mixed_precision() -> None:
    """Processors with native bfloat16 and GPUs compute them so."""
    torch.manual_seed(0)
    planner, rivals = Planner(SHAPE), Rivals(Painter(SHAPE), Discriminator(SHAPE.plan))
    batch = paintings(draw_pictures("train", 4, seed=1), 4, seed=1)(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [plan_loss(planner, texts(2, seed=1)(0))[0], *rivals(*batch, 1.0, 1.0).values()]
    torch.stack(losses).sum().backward()
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in rivals.parameters())
