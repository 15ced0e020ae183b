"""Teaching the painter pairs of object and action, or colour, that no picture shows: a frozen critic guides it.

Reconstruction of drawn pictures goes on, so that what the painter can do stays. Beside it the painter paints plans of
scenes with an unseen pair, whose pictures nobody has drawn; the critic (`workers.lab.training.critic`) looks at
every thing in them, wherever it stands, and tells by its gradient what keeps it from being what the plan says. Its view
is moved, blurred and noisy at random, so that only what a thing looks like counts and no pattern that happens to please
it.

A second critic, with other seeds and other pictures, from which no gradient ever comes, chooses what is kept.

    python -m workers.lab.training.critic --seed 6001 --out runs/critic
    python -m workers.lab.training.critic --seed 6101 --out runs/referee
    python -m workers.lab.training.guided --critic runs/critic --referee runs/referee --out runs/guided --ship
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, softplus

from workers.lab.training.checkpoint import save_weights
from workers.lab.training.critic import CELLS, Catalogue, Critic, Opinion, cut, framed, head_cells, windows
from workers.lab.training.data import Pictures, disturb, draw_pictures
from workers.lab.training.generator import Paintings, painting_loss, paintings, pixel_error, report
from workers.lab.training.loop import Loss, Outcome, Validation, train
from workers.lab.training.recipe import Recipe
from workers.lab.world.latents import LATENT_SIZE
from workers.lab.world.quadrupeds import BUILDS
from workers.models.generator import Generator, Painted, Painter
from workers.scenes.grammar import ANIMALS, UNSEEN_ACTIONS, Scene, Split, pick, sample_scene, slots
from workers.scenes.lexicon import KEYS

log = logging.getLogger("workers.lab.training")

START = Path(__file__).parents[2] / "weights" / "generator.safetensors"
"""The shipped generator, from which this starts and which it replaces."""

Guided: TypeAlias = tuple[Paintings, Tensor, Tensor]
"""What is reconstructed; plans (B, columns) and noise (B, noise) of pictures that nobody has drawn."""


@dataclass(frozen=True, slots=True)
class GuidedRecipe(Recipe):
    steps: int = 2000
    learning_rate: float = 4e-4
    warmup: int = 100
    ema: float = 0.998
    validate_every: int = 200
    checkpoint_every: int = 200
    bf16: bool = False
    batch: int = 16
    """Pictures that are reconstructed."""
    guided: int = 16
    """Pictures that are painted for the critic."""
    acting: float = 0.75
    """Share of these with an unseen pair of object and action; the others have one of object and colour."""
    weight: float = 0.05
    """Of the critic's opinion beside the reconstruction."""
    anchor: float = 0.5
    """Of how far the guided pictures, seen from afar, are from those of the painter that this started from: their
    colours and arrangement were right."""
    memory: float = 0.5
    """How often the painter has at hand what it knows by heart of seen pairs, see `Painter.memory`: it forgets more
    often than in its first training, because of unseen pairs it knows nothing by heart."""


class Unseen:
    """Plans of scenes with an unseen pair, each pair of object and action as often as the others."""

    def __init__(self, seed: int, count: int = 12_000):
        rng = np.random.default_rng([seed, count])
        self.groups: dict[tuple[str, str] | None, list[NDArray[np.int64]]] = {}
        for _ in range(count):
            scene = sample_scene(rng, "unseen")
            self.groups.setdefault(acting(scene), []).append(slots(scene))
        self.pairs = sorted(UNSEEN_ACTIONS)

    def draw(self, count: int, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Plans (count, columns) and noise (count, noise), a `share` of them with an unseen object and action."""
        pairs = [pick(rng, self.pairs) if rng.random() < share else None for _ in range(count)]
        plans = np.stack([pick(rng, self.groups[pair]) for pair in pairs])
        noise = rng.uniform(-1, 1, (count, LATENT_SIZE)).astype(np.float32)
        return torch.from_numpy(plans), torch.from_numpy(noise)


def acting(scene: Scene) -> tuple[str, str] | None:
    """The unseen pair of object and action in a scene."""
    found = [(t.object, t.action) for t in scene.things if t.action and (t.object, t.action) in UNSEEN_ACTIONS]
    return found[0] if found else None


def batches(data: Pictures, recipe: GuidedRecipe) -> Callable[[int], Guided]:
    drawn, unseen = paintings(data, recipe.batch, recipe.seed), Unseen(recipe.seed)

    def batch(step: int) -> Guided:
        rng = np.random.default_rng([recipe.seed, step, 1])
        return drawn(step), *unseen.draw(recipe.guided, recipe.acting, rng)

    return batch


_ANIMALS = torch.tensor([object_ in ANIMALS for object_ in KEYS["object"]])
_HEADED = torch.tensor([object_ in BUILDS for object_ in KEYS["object"]])


def _middle() -> Tensor:
    """Which cells of a cutting are of the thing that it was cut for, not of a neighbour; bool (cells,)."""
    across = (torch.arange(CELLS) + 0.5) / CELLS * 2 - 1
    return (across.abs() < 0.7).expand(CELLS, CELLS).flatten()


def look(critic: Critic, painted: Painted, heads: Tensor, rng: np.random.Generator | None = None) -> Opinion:
    """The critic's opinion of every thing that was painted, in the middle of its window; disturbed where there is an
    `rng`. A head counts only where `heads` (7, cells) has heads in that action; see `head_cells`."""
    play = np.zeros((len(painted.frames), 3)) if rng is None else rng.uniform(-1, 1, (len(painted.frames), 3))
    spot = framed(painted.frames.detach())
    window = windows(spot, torch.from_numpy(play.astype(np.float32)))
    cuttings = cut(painted.pictures[painted.picture], window)
    opinion: Opinion = critic(cuttings if rng is None else disturb(cuttings, rng))
    object_, action = painted.kind[:, 0] - 1, painted.kind[:, 2]
    towards = heads[action].view(-1, CELLS, CELLS)
    towards = torch.where(painted.frames[:, 2, None, None] < 0, towards.flip(2), towards).flatten(1)
    own = (towards | ~_HEADED[object_, None]) & _middle()
    counts = _middle().expand_as(opinion.evidence).clone()
    counts[torch.arange(len(own)), object_] = own
    return opinion._replace(evidence=opinion.evidence.masked_fill(~counts, -30.0))


def opinion_loss(opinion: Opinion, kind: Tensor) -> dict[str, Tensor]:
    """How far each thing is from what the plan says, (N, 4): there at all, this object and no other, acting so."""
    object_, action = kind[:, 0] - 1, kind[:, 2]
    presence = opinion.presence
    animal = _ANIMALS[object_]
    return {
        "there": softplus(-presence.gather(1, object_[:, None])).mean(),
        "object": cross_entropy(presence, object_),
        "action": cross_entropy(opinion.action[animal], action[animal]),
    }


def from_afar(images: Tensor) -> Tensor:
    """(B, 3, 64, 64) → (B, 3, 8, 8): where which colour is, and no form."""
    return avg_pool2d(images, 8)


def guidance(critics: Sequence[Critic], heads: Tensor, first: Painter, recipe: GuidedRecipe) -> Loss[Guided]:
    """Reconstruction of what was drawn, and the critics' opinion of what was not; `first` is the painter before."""
    first = first.eval().requires_grad_(False)

    def loss(painter: nn.Module, batch: Guided) -> tuple[Tensor, Mapping[str, Tensor]]:
        drawn, plan, noise = batch
        error, told = painting_loss(painter, drawn)
        painted = cast("Painter", painter).paint(plan, noise)
        # The loop seeds torch by step: so the critics' views depend on the step alone.
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        parts = [opinion_loss(look(critic, painted, heads, rng), painted.kind) for critic in critics]
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        away = (from_afar(painted.pictures) - from_afar(first(plan, noise))).abs().mean()
        value = error + recipe.weight * torch.stack(list(means.values())).sum() + recipe.anchor * away
        parts_ = {"drawn": error, "away": away, **means}
        return value, {**told, **{name: part.detach() for name, part in parts_.items()}}

    return loss


@torch.no_grad()
def approval(
    painter: Painter, critic: Critic, heads: Tensor, plan: Tensor, noise: Tensor, size: int = 50
) -> dict[str, float]:
    """How probable the critic finds it that painted things are what their plans say, on average over all of them and
    over those of each unseen pair of object and action."""
    chances, kinds = [], []
    for start in range(0, len(plan), size):
        painted = painter.paint(plan[start : start + size], noise[start : start + size])
        opinion = look(critic, painted, heads)
        object_, action = painted.kind[:, 0] - 1, painted.kind[:, 2]
        each = opinion.presence.sigmoid() * opinion.presence.softmax(1)
        acts = opinion.action.softmax(1).gather(1, action[:, None])[:, 0]
        chances.append(each.gather(1, object_[:, None])[:, 0] * acts.where(_ANIMALS[object_], 1.0))
        kinds.append(torch.stack([object_, action], 1))
    chance, kind = torch.cat(chances), torch.cat(kinds)
    told = {}
    for name, doing in sorted(UNSEEN_ACTIONS):
        mine = (kind == torch.tensor([KEYS["object"].index(name), KEYS["action"].index(doing) + 1])).all(1)
        if mine.any():
            told[f"{name} {doing}"] = chance[mine].mean().item()
    return {"things": chance.mean().item(), **told}


def keep_unlearnt(painter: Painter) -> None:
    """Lets nothing be learnt by heart of unseen pairs: with a picture's worth of free numbers for each, the painter
    would write there whatever pleases the critic, instead of drawing."""
    free = torch.ones_like(painter.known[..., :1, :1, :1])
    for object_, action in UNSEEN_ACTIONS:
        free[KEYS["object"].index(object_) + 1, KEYS["action"].index(action) + 1] = 0
    painter.known.register_hook(lambda gradient: gradient * free)  # type: ignore[no-untyped-call]


def train_guided(
    start: Path,
    critics: Sequence[Critic],
    referee: Critic,
    data: Pictures,
    validation: Pictures,
    run: Path,
    recipe: GuidedRecipe,
    minutes: float | None = None,
) -> Outcome:
    """The painter of the generator in `start`, guided, in the folder `run`."""
    heads = head_cells(Catalogue.of(data.scenes))
    # Other plans and noise than those of training.
    plan, noise = Unseen(recipe.seed + 1).draw(400, 1.0, np.random.default_rng(recipe.seed + 1))

    def figures(painter: nn.Module) -> dict[str, float]:
        told = approval(cast("Painter", painter), referee, heads, plan, noise)
        pairs = [chance for name, chance in told.items() if name != "things"]
        return {"pixels": pixel_error(cast("Painter", painter), validation), "pairs": float(np.mean(pairs)), **told}

    painter, first = (Generator.load(start).painter for _ in range(2))
    painter.memory = recipe.memory
    keep_unlearnt(painter)
    judge = Validation(figures, "pairs")
    loss = guidance(critics, heads, first, recipe)
    return train(painter, loss, batches(data, recipe), recipe, run, validation=judge, minutes=minutes)


def ship(run: Path, start: Path, target: Path, told: Mapping[str, object], judged: Mapping[str, Pictures]) -> None:
    """Puts the kept painter in the place of that of the generator in `start`; with its figures, in half precision."""
    generator = Generator.load(start)
    state = {name: t.half().float() for name, t in load_file(run / "weights.safetensors").items()}
    generator.painter.load_state_dict(state)
    run_facts = json.loads((run / "weights.json").read_text())
    before = json.loads(start.with_suffix(".json").read_text())
    measured = report(generator.eval(), judged)
    facts = {
        **before,
        "command": shlex.join(["python", "-m", "workers.lab.training.guided", *sys.argv[1:]]),
        "config": {**before["config"], "guided": run_facts["config"]},
        "date": run_facts["date"],
        "guided": dict(told),
        "metrics": {
            **before["metrics"],
            **{f"guided/{name}": value for name, value in run_facts["metrics"].items()},
            **measured,
        },
        "seconds": round(before["seconds"] + run_facts["seconds"], 1),
        "start": {"command": before["command"], "date": before["date"], "seed": before["seed"]},
        "step": {**before["step"], "guided": run_facts["step"]},
    }
    save_weights(target, generator.state_dict(), facts, half=True)
    log.info("%s\n%s", target, json.dumps(facts["metrics"], indent=2))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m workers.lab.training.guided", description=__doc__)
    default = GuidedRecipe(steps=2000)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--start", type=Path, default=START, help="weights of the generator whose painter is guided")
    parser.add_argument("--critic", type=Path, nargs="+", required=True, help="runs of the critics that guide")
    parser.add_argument("--referee", type=Path, required=True, help="run of the critic that chooses")
    parser.add_argument("--minutes", type=float, help="stop after this time; the next call goes on")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--rate", type=float, default=default.learning_rate, help="peak learning rate")
    parser.add_argument("--weight", type=float, default=default.weight, help="of the critics' opinion")
    parser.add_argument("--anchor", type=float, default=default.anchor, help="of how far it strays from the start")
    parser.add_argument("--pictures", type=int, default=20_000, help="drawn pictures that are reconstructed")
    parser.add_argument("--data-seed", type=int, default=0, help="of the pictures that are reconstructed")
    parser.add_argument("--judged", type=int, default=500, help="pictures of each test split in the final figures")
    parser.add_argument("--seed", type=int, default=6201, help="of batches and of what is asked for")
    parser.add_argument("--cache", type=Path, default=Path("runs/pictures"), help="where drawn pictures are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ship", action="store_true", help="put the weights where the built-in engines find them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def draw(split: Split, count: int, seed: int = options.data_seed) -> Pictures:
        return draw_pictures(split, count, seed=seed, cache=options.cache, processes=options.threads)

    recipe = replace(
        default,
        steps=options.steps,
        learning_rate=options.rate,
        weight=options.weight,
        anchor=options.anchor,
        seed=options.seed,
    )
    critics = [Critic.load(run / "weights.safetensors") for run in options.critic]
    referee = Critic.load(options.referee / "weights.safetensors")
    data, validation = draw("train", options.pictures), draw("validation", 500)
    outcome = train_guided(options.start, critics, referee, data, validation, options.out, recipe, options.minutes)
    if outcome.finished:
        target = START if options.ship else options.out / "shipped.safetensors"
        told = {"critics": [_about(run) for run in options.critic], "referee": _about(options.referee)}
        # On the pictures that the shipped generators before this one were judged on.
        splits: dict[str, Pictures] = {split: draw(split, options.judged, 0) for split in ("seen", "unseen")}
        ship(options.out, options.start, target, told, splits)


def _about(run: Path) -> dict[str, object]:
    """Where a critic comes from."""
    facts = json.loads((run / "weights.json").read_text())
    return {name: facts[name] for name in ("command", "seed", "step", "parameters", "metrics")}


if __name__ == "__main__":
    main()
