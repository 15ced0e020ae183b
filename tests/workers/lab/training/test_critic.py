"""The critic, and the painter that it guides to pairs without pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.lab.training import guided
from workers.lab.training.checkpoint import save_weights
from workers.lab.training.critic import (
    CELLS,
    N_ACTIONS,
    SIDE,
    Catalogue,
    Critic,
    CriticRecipe,
    Opinion,
    batches,
    blurred,
    criticism,
    cut,
    ears,
    face,
    figures,
    framed,
    head_cells,
    train_critic,
    windows,
)
from workers.lab.training.data import Pictures, draw_pictures, to_tensor
from workers.lab.training.guided import (
    GuidedRecipe,
    Unseen,
    approval,
    guidance,
    keep_unlearnt,
    look,
    opinion_loss,
    ship,
    train_guided,
)
from workers.lab.world.latents import BACKGROUND_SIZE, INSTANCE_SIZE, latents
from workers.lab.world.render import places, render
from workers.models.generator import SIDE as PICTURE
from workers.models.generator import Generator, Shape
from workers.models.text import vocabulary
from workers.scenes.grammar import SLOT_SIZES, UNSEEN_ACTIONS, Scene, Thing, slots
from workers.scenes.lexicon import KEYS

SHAPE = Shape(len(vocabulary()), tuple(SLOT_SIZES), BACKGROUND_SIZE, INSTANCE_SIZE)


EVERYWHERE = torch.ones(N_ACTIONS, CELLS**2, dtype=torch.bool)


@pytest.fixture(scope="module")
def data() -> Pictures:
    return draw_pictures("train", 60, seed=5)


@pytest.fixture(scope="module")
def critic() -> Critic:
    torch.manual_seed(4)
    return Critic().eval().requires_grad_(False)


# ── the critic ────────────────────────────────────────────────────────────────────────────────────


def test_a_cutting_shows_its_thing_in_the_middle_whatever_its_size_and_place() -> None:
    """A lone red car on snow, then what is cut out: nearly all of what is red is there, around the middle."""
    for seed, size in ((1, "large"), (2, "small"), (3, "small"), (4, "large")):
        scene = Scene((Thing("car", "red", None, size),), "snow", None, seed)
        things = Catalogue.of([scene])
        spot = torch.from_numpy(things.spot)
        window = windows(spot, torch.zeros_like(spot))
        image = to_tensor(render(scene, PICTURE)[None])
        red = ((image[:, :1] - image[:, 2:]) > 0.8).float()
        shown = cut(red.expand(-1, 3, -1, -1), window)[0, 0]
        scale = float(window[0, 0, 0]) * PICTURE / SIDE
        assert shown.sum() * scale**2 == pytest.approx(float(red.sum()), rel=0.15)
        rows, columns = (shown > 0.5).nonzero(as_tuple=True)
        assert abs(columns.float().mean() - SIDE / 2) < SIDE / 8
        assert SIDE / 4 < rows.float().mean() < 7 * SIDE / 8


def test_the_shipped_painter_puts_things_where_the_critic_learnt_to_look(data: Pictures) -> None:
    """Windows from the painter's frames are those from where the renderer has the things, and hardly off."""
    painter = Generator.load(guided.START).painter
    some = data.scenes[:30]
    plan, noise = (torch.from_numpy(np.stack([of(scene) for scene in some])) for of in (slots, latents))
    with torch.no_grad():
        painted = painter.paint(plan, noise)
    things = Catalogue.of(some)
    assert painted.picture.tolist() == things.picture.tolist()
    assert (painted.kind[:, 0] - 1).tolist() == things.kind[:, 0].tolist()
    none = torch.zeros(len(painted.picture), 3)
    mine, theirs = windows(framed(painted.frames), none), windows(torch.from_numpy(things.spot), none)
    half = theirs[:, 0, :1]
    off = (mine[:, :, 2] - theirs[:, :, 2]).abs() / half
    assert off.mean(0).max() < 0.08
    # A jumping horse is drawn smaller than its frame, to stay in the picture.
    assert (off < 0.5).all()
    assert ((mine[:, 0, 0] / half[:, 0]).log().abs() < 0.5).all()


def test_telling_cells_are_those_of_heads_and_of_whole_things_without_one(data: Pictures) -> None:
    plain = CriticRecipe(retone=0, bare=0, earless=0, faceless=0, tilt=0, batch=40, seed=1)
    cuttings, kind, own, telling, met = batches(data, plain)(0)
    assert cuttings.shape == (40, 3, SIDE, SIDE)
    assert own.shape == (40, CELLS**2)
    assert telling.shape == (40, len(KEYS["object"]), CELLS**2)
    mine = telling[torch.arange(40), kind[:, 0]]
    assert (own & ~mine).sum() == 0, "what tells of the thing tells of its kind"
    heads = torch.tensor([KEYS["object"][k] in ("cat", "dog", "rabbit", "horse") for k in kind[:, 0].tolist()])
    shares = own.float().mean(1)
    assert shares[heads].max() < shares[~heads].median()
    assert not met[KEYS["object"].index("horse"), KEYS["action"].index("sitting") + 1]


def test_a_faceless_thing_tells_nothing_and_is_not_asked_what_it_does(data: Pictures) -> None:
    recipe = CriticRecipe(retone=0, bare=0, earless=0, faceless=1, tilt=0, batch=20, seed=1)
    _, kind, own, _, _ = batches(data, recipe)(0)
    assert not own.any()
    assert (kind[:, 1] == -1).all()


def test_blurring_a_box_leaves_the_rest_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    changed = blurred(picture, np.array([0.25, 0.25, 0.5, 0.5], np.float32))
    inside = np.zeros((64, 64), bool)
    inside[14:34, 14:34] = True
    assert (changed[~inside] == picture[~inside]).all()
    assert changed[inside].std() < 0.3 * picture[inside].std()


def test_face_and_ears_are_parts_of_a_heads_box_and_apart() -> None:
    scene = Scene((Thing("rabbit", "red", None, "large"),), "grass", seed=3)
    head = places(scene)[0].head
    assert head is not None
    box = np.array(head.box, np.float32)
    left, top, right, bottom = face(box)
    assert (left, right, bottom) == pytest.approx((box[0], box[2], box[3]), rel=1e-5)
    assert top == pytest.approx(head.y - 0.9 * head.radius, rel=1e-4)
    above = ears(box)
    assert above[3] < top
    assert above[3] == pytest.approx(head.y - head.radius, rel=1e-4)
    assert above[1] < box[1] < above[3]


def test_heads_are_low_in_sleep_and_high_in_a_leap_and_to_the_right(data: Pictures) -> None:
    cells = head_cells(Catalogue.of(draw_pictures("train", 300, seed=6).scenes)).view(-1, CELLS, CELLS)
    rows = {}
    for action in ("jumping", "sleeping"):
        row, column = cells[KEYS["action"].index(action) + 1].nonzero(as_tuple=True)
        rows[action] = row.float().mean()
        assert column.float().mean() > CELLS / 2
    assert rows["jumping"] < CELLS / 2 - 2 < CELLS / 2 + 1 < rows["sleeping"]


def test_a_head_counts_only_where_heads_are(critic: Critic) -> None:
    """Also mirrored: for a thing that looks to the left the cells are turned round."""
    torch.manual_seed(0)
    painter = Generator(SHAPE).painter
    horse = Scene((Thing("horse", "red", "sitting", "large"),), "grass")
    corner = torch.zeros(N_ACTIONS, CELLS, CELLS, dtype=torch.bool)
    corner[KEYS["action"].index("sitting") + 1, 3, 10] = True
    k = KEYS["object"].index("horse")
    for side, column in ((0.5, 10), (-0.5, CELLS - 1 - 10)):
        noise = torch.zeros(1, SHAPE.noise)
        noise[:, SHAPE.scene_noise + 3] = side
        painted = painter.paint(torch.from_numpy(slots(horse))[None], noise)
        evidence = look(critic, painted, corner.flatten(1)).evidence[0].view(-1, CELLS, CELLS)
        assert (evidence[k] > -30).nonzero().tolist() == [[3, column]]
        assert (evidence[k - 1] > -30).sum() > CELLS


def test_pictures_of_the_test_split_are_no_part_of_what_it_learns(data: Pictures) -> None:
    """Pairs that the painter is guided to are in no picture that the critic learns from."""
    _, _, _, _, met = batches(data, CriticRecipe(batch=4))(0)
    for object_, action in UNSEEN_ACTIONS:
        assert not met[KEYS["object"].index(object_), KEYS["action"].index(action) + 1]


def test_a_critic_is_trained_in_slices_and_gets_better(data: Pictures, tmp_path: Path) -> None:
    recipe = CriticRecipe(
        steps=24,
        warmup=2,
        batch=24,
        bare=0,
        earless=0,
        faceless=0,
        tilt=0,
        retone=0,
        validate_every=12,
        checkpoint_every=6,
    )
    start = criticism(Critic(), batches(data, recipe)(0))[0].item()
    assert not train_critic(data, data, tmp_path, recipe, minutes=0).finished
    outcome = train_critic(data, data, tmp_path, recipe)
    assert outcome.finished
    assert outcome.step == 24
    trained = Critic.load(tmp_path / "weights.safetensors")
    assert criticism(trained, batches(data, recipe)(0))[0].item() < 0.8 * start
    assert set(figures(trained, data)) == {"object", "action", "both"}


# ── guiding ───────────────────────────────────────────────────────────────────────────────────────


def test_every_unseen_pair_of_object_and_action_is_asked_for_as_often() -> None:
    plan, noise = Unseen(3, 3000).draw(400, 1.0, np.random.default_rng(0))
    assert plan.shape == (400, len(SLOT_SIZES))
    assert noise.shape == (400, SHAPE.noise)
    for object_, action in UNSEEN_ACTIONS:
        k, doing = KEYS["object"].index(object_) + 1, KEYS["action"].index(action) + 1
        mine = ((plan[:, 0] == k) & (plan[:, 2] == doing)) | ((plan[:, 5] == k) & (plan[:, 7] == doing))
        assert 70 < int(mine.sum()) < 130
    coloured, _ = Unseen(3, 3000).draw(50, 0.0, np.random.default_rng(0))
    acts = {(KEYS["object"].index(o) + 1, KEYS["action"].index(a) + 1) for o, a in UNSEEN_ACTIONS}
    assert not acts & {(int(row[i]), int(row[i + 2])) for row in coloured for i in (0, 5)}


def test_the_loss_falls_with_each_part_that_is_as_the_plan_says() -> None:
    """For a sitting horse: there, a horse, sitting, each for itself."""
    horse, sits = KEYS["object"].index("horse"), KEYS["action"].index("sitting") + 1
    kind = torch.tensor([[horse + 1, 1, sits, 1]])

    def opinion(object_: int, action: int, strength: float = 3.0) -> Opinion:
        evidence = torch.full((1, len(KEYS["object"]), CELLS**2), -12.0)
        evidence[0, object_, 5] = strength
        logits = torch.zeros(1, len(KEYS["action"]) + 1)
        logits[0, action] = 5
        return Opinion(evidence, logits)

    right = opinion_loss(opinion(horse, sits), kind)
    assert sum(right.values()) < 0.15
    assert opinion_loss(opinion(horse, 0), kind)["action"] > 3
    assert opinion_loss(opinion(0, sits), kind)["object"] > 3
    assert opinion_loss(opinion(horse, sits, -8.0), kind)["there"] > 3
    house = KEYS["object"].index("house")
    with_house = Opinion(*(torch.cat(pair) for pair in zip(opinion(house, 3), opinion(horse, sits), strict=True)))
    told = opinion_loss(with_house, torch.cat([torch.tensor([[house + 1, 1, 0, 1]]), kind]))
    assert told["action"] == right["action"], "what never acts is not asked for an action"


def test_gradients_reach_the_painter_alone_and_every_thing(critic: Critic) -> None:
    torch.manual_seed(0)
    painter = Generator(SHAPE).painter
    scene = Scene((Thing("dog", "red", "jumping", "large", 3),), "grass", seed=8)
    painted = painter.paint(torch.from_numpy(slots(scene))[None], torch.from_numpy(latents(scene))[None])
    painted.pictures.retain_grad()
    opinion = look(critic, painted, EVERYWHERE, np.random.default_rng(0))
    assert len(opinion.action) == 3
    torch.autograd.backward(torch.stack(list(opinion_loss(opinion, painted.kind).values())).sum())
    felt = painted.pictures.grad
    assert felt is not None
    for each in places(scene):
        left, top, right, bottom = (min(max(round(share * PICTURE), 0), PICTURE) for share in each.box)
        assert felt[0, :, top:bottom, left:right].abs().sum() > 0
    assert painter.thing.seed.weight.grad is not None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_critics_view_depends_on_the_step_alone(critic: Critic, data: Pictures) -> None:
    torch.manual_seed(0)
    painter, first = Generator(SHAPE).painter.eval(), Generator(SHAPE).painter
    recipe = GuidedRecipe(batch=2, guided=3, steps=1)
    batch = guided.batches(data, recipe)(7)
    values = []
    for _ in range(2):
        torch.manual_seed(11)
        values.append(guidance([critic], EVERYWHERE, first, recipe)(painter, batch)[0].item())
    assert values[0] == values[1]


def test_what_strays_from_the_first_painters_colours_costs(critic: Critic, data: Pictures) -> None:
    torch.manual_seed(0)
    painter = Generator(SHAPE).painter.eval()
    recipe = GuidedRecipe(batch=2, guided=3, steps=1, anchor=1.0)
    batch = guided.batches(data, recipe)(7)
    assert guidance([critic], EVERYWHERE, painter, recipe)(painter, batch)[1]["away"] == 0
    assert guidance([critic], EVERYWHERE, Generator(SHAPE).painter, recipe)(painter, batch)[1]["away"] > 0


def test_nothing_is_learnt_by_heart_of_unseen_pairs(critic: Critic) -> None:
    torch.manual_seed(0)
    painter = Generator(SHAPE).painter
    painter.memory = 1.0
    keep_unlearnt(painter)
    plan, noise = Unseen(3, 2000).draw(24, 1.0, np.random.default_rng(0))
    torch.autograd.backward(painter.paint(plan, noise).pictures.square().mean())
    felt = painter.known.grad
    assert felt is not None
    for object_, action in UNSEEN_ACTIONS:
        assert not felt[KEYS["object"].index(object_) + 1, KEYS["action"].index(action) + 1].any()
    others = {(int(row[i]), int(row[i + 2])) for row in plan for i in (0, 5) if row[i]}
    seen = [
        felt[o, a].abs().sum()
        for o, a in others
        if (KEYS["object"][o - 1], (None, *KEYS["action"])[a]) not in UNSEEN_ACTIONS
    ]
    assert min(seen) > 0


def test_a_painter_is_guided_and_shipped_with_the_planner_as_it_was(data: Pictures, tmp_path: Path) -> None:
    torch.manual_seed(1)
    generator, start = Generator(SHAPE), tmp_path / "start.safetensors"
    earlier = {"shape": asdict(SHAPE), "command": "c", "config": {"steps": 1}, "date": "d", "metrics": {"m": 1.0}}
    save_weights(start, generator.state_dict(), {**earlier, "seconds": 1.0, "seed": 0, "step": {"painter": 1}})
    critics = [Critic().eval().requires_grad_(False) for _ in range(2)]
    recipe = GuidedRecipe(
        steps=3, batch=2, guided=2, warmup=1, validate_every=3, checkpoint_every=1, learning_rate=1e-2
    )
    outcome = train_guided(start, critics[:1], critics[1], data, data.take(np.arange(3)), tmp_path / "run", recipe)
    assert outcome.finished
    assert set(outcome.metrics) >= {"pixels", "pairs", "things"}
    target = tmp_path / "shipped.safetensors"
    splits: dict[str, Pictures] = {
        "seen": draw_pictures("seen", 2, seed=1),
        "unseen": draw_pictures("unseen", 2, seed=1),
    }
    ship(tmp_path / "run", start, target, {"critics": []}, splits)
    made = Generator.load(target)
    for name, weight in generator.planner.state_dict().items():
        assert torch.equal(made.planner.state_dict()[name], weight.half().float())
    assert not torch.equal(made.painter.thing.mix.weight, generator.painter.thing.mix.weight.half().float())
    facts = json.loads(target.with_suffix(".json").read_text())
    assert facts["config"]["guided"]["steps"] == 3
    assert facts["metrics"]["m"] == 1.0
    assert facts["start"] == {"command": "c", "date": "d", "seed": 0}


def test_approval_is_told_pair_by_pair(critic: Critic) -> None:
    torch.manual_seed(2)
    plan, noise = Unseen(5, 2000).draw(24, 1.0, np.random.default_rng(1))
    told = approval(Generator(SHAPE).painter.eval(), critic, EVERYWHERE, plan, noise)
    assert set(told) == {"things", *(f"{o} {a}" for o, a in UNSEEN_ACTIONS)}
    assert all(0 <= share <= 1 for share in told.values())
