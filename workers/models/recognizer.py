"""The recogniser: a CNN that finds each object by a part that tells it, and heads that all objects share.

It is built so that what it knows of one object carries over to the others:

* *What* a thing is, is decided by small neighbourhoods, a head or a hull, each for itself (as in BagNet: Brendel and
  Bethge, 2019): a jumping dog has the head of any other dog.
* Where the evidence is, the attributes are read, by the same heads for all objects: the colour from the lowest layer,
  whose cells see little more than colours; action, size and number from the highest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from workers.models.trunk import GRID, WIDTH, DomainHead, Trunk
from workers.scenes.grammar import Scene, Thing
from workers.scenes.lexicon import KEYS, Role

Labels: TypeAlias = Mapping[Role, tuple[str, ...]]
"""What there is to be recognised: the values of each role. Those of the drawn world, or own ones."""

N_OBJECTS = len(KEYS["object"])
PAIRS = tuple(combinations(range(N_OBJECTS), 2))
"""Objects whose relation is read, in canonical order."""


def labels_beside(weights: Path) -> Labels:
    """What the model with these stored weights recognises."""
    facts = weights.with_suffix(".json")
    own = json.loads(facts.read_text()).get("labels", {}) if facts.exists() else {}
    return KEYS | {role: tuple(values) for role, values in own.items()}


class Reading(NamedTuple):
    """Logits for a batch of B pictures; attributes have a row for each of the 10 objects, true where it is present."""

    presence: Tensor
    """(B, 10)"""
    colour: Tensor
    """(B, 10, 8)"""
    action: Tensor
    """(B, 10, 7); the first is standing still."""
    size: Tensor
    """(B, 10, 2)"""
    count: Tensor  # type: ignore[assignment]  # and not how often a value occurs in a tuple
    """(B, 10, 4)"""
    place: Tensor
    """(B, 6)"""
    relation: Tensor
    """(B, 45, 4), of the first object of each of `PAIRS` to the second."""
    domain: Tensor
    """(B,), positive in the drawn world."""
    evidence: Tensor
    """(B, 10, 256): for each cell of a 16×16 grid, what it adds to `presence`."""
    gaze: Tensor
    """(B, 10, 256): where the attributes are read; shares of 1, not logits."""
    tokens: Tensor
    """(B, 64, width): all that the trunk saw, for models that learn what the heads have no name for."""


class Recognizer(nn.Module):
    """Pictures (B, 3, 64, 64) → `Reading`; see the module."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.1, labels: Labels = KEYS):
        super().__init__()
        self.labels = labels
        objects = len(labels["object"])
        stem, near = width // 4, width // 2
        self.trunk = Trunk(width)
        self.parts = nn.Sequential(nn.Conv2d(near, width, 1), nn.ReLU(), nn.Dropout2d(dropout))
        self.evidence = nn.Conv2d(width, objects, 1)
        nn.init.constant_(self.evidence.bias, -log(4 * GRID**2) - 1.0)  # type: ignore[arg-type]  # it has one
        self.gaze = nn.Conv2d(width, objects, 1)
        self.values = nn.Linear(width, width)
        self.tints = nn.Sequential(nn.Conv2d(stem, near, 1), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.colour = nn.Sequential(nn.Linear(near, near), nn.ReLU(), nn.Linear(near, len(labels["colour"])))
        acts = nn.Linear(width, len(labels["action"]) + 1)
        self.action = nn.Sequential(nn.Linear(width + near, width), nn.ReLU(), nn.Dropout(dropout), acts)
        self.size = nn.Linear(width, len(labels["size"]))
        self.count = nn.Linear(2 * width, len(labels["count"]))
        self.place = nn.Linear(2 * width, len(labels["place"]))
        self.relation = nn.Sequential(nn.Linear(2 + 2 * width, 64), nn.ReLU(), nn.Linear(64, len(labels["relation"])))
        self.domain = DomainHead(width)
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID), indexing="ij")
        self.cells: Tensor
        self.register_buffer("cells", torch.stack([columns, rows], -1).reshape(-1, 2), persistent=False)
        self.first: Tensor
        self.second: Tensor
        first, second = torch.combinations(torch.arange(objects)).unbind(1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)

    def forward(self, images: Tensor) -> Reading:
        """Pictures (B, 3, 64, 64) in [-1, 1] → logits."""
        views = self.trunk(images)
        tokens = views.far
        whole = torch.cat([tokens.mean(1), tokens.amax(1)], 1)
        parts = self.parts(views.near)
        evidence = self.evidence(parts).flatten(2).float()
        attraction = evidence.detach() + self.gaze(parts).flatten(2)
        gaze = attraction.softmax(-1).to(tokens.dtype)
        coarse = 4 * avg_pool2d(gaze.unflatten(2, (2 * GRID, 2 * GRID)), 2).flatten(2)
        seen = self.dropout(coarse @ self.values(tokens))
        near = gaze @ views.near.flatten(2).transpose(1, 2)
        tints = avg_pool2d(self.tints(views.stem), 2)
        tint = gaze @ tints.flatten(2).transpose(1, 2)
        centres = coarse.float() @ self.cells
        apart = (centres[:, self.first] - centres[:, self.second]).to(seen.dtype)
        pairs = torch.cat([apart, seen[:, self.first], seen[:, self.second]], -1)
        whole_each = tokens.mean(1, keepdim=True).expand(-1, evidence.shape[1], -1)
        return Reading(
            evidence.logsumexp(-1) if self.training else suppress_overlaps(evidence),
            self.colour(tint),
            self.action(torch.cat([seen, near], -1)),
            self.size(seen),
            self.count(torch.cat([seen, whole_each], -1)),
            self.place(whole),
            self.relation(pairs),
            self.domain(tokens),
            evidence,
            gaze,
            tokens,
        )


REACH = 2
"""How many cells around its evidence belong to a thing."""
LENIENCE = 0.4
"""Added to the logit of a second object: the most that cost no validation picture."""


def suppress_overlaps(evidence: Tensor) -> Tensor:
    """Presence (B, 10) from evidence (B, 10, 256), where one place holds one thing.

    The most likely object keeps its evidence, the others only that from other places (non-maximum suppression): a head
    that might be a cat's or a dog's is one of them, not both.
    """
    presence = evidence.logsumexp(-1)
    most, first = presence.max(1, keepdim=True)
    own = evidence.gather(1, first[:, :, None].expand(-1, -1, evidence.shape[2]))
    explained = (own > most[:, :, None] - 4).float().view(-1, 1, 2 * GRID, 2 * GRID)
    explained = max_pool2d(explained, 2 * REACH + 1, 1, REACH).flatten(2).bool()
    elsewhere = evidence.masked_fill(explained, -30.0).logsumexp(-1) + LENIENCE
    return elsewhere.scatter(1, first, most)


@dataclass(frozen=True, slots=True)
class Recognized:
    """What the recogniser makes of one picture."""

    scene: Scene
    confidences: tuple[float, ...]
    """Probability of each thing: that of its object times those of its attributes."""
    place_confidence: float
    in_domain: float
    """Probability that the picture is of the drawn world."""


def interpret(reading: Reading, labels: Labels = KEYS) -> list[Recognized]:
    """The most likely scene for each picture: one thing, or two where a second object is more likely than not."""
    pairs = list(combinations(range(len(labels["object"])), 2))
    presence = reading.presence.float().sigmoid()
    attributes = (reading.colour, reading.action, reading.size, reading.count)
    best = [logits.float().softmax(-1).max(-1) for logits in attributes]
    place = reading.place.float().softmax(-1).max(-1)
    relation = reading.relation.argmax(-1)
    in_domain = reading.domain.float().sigmoid()
    found = []
    for row in range(presence.shape[0]):
        likeliest = presence[row].topk(2)
        two = bool(likeliest.values[1] > 0.5)
        objects = sorted(likeliest.indices[: 2 if two else 1].tolist())
        things = []
        confidences = []
        for object_ in objects:
            # Only single things come in two kinds: their number is not read.
            asked = best[:3] if two else best
            values = [int(each.indices[row, object_]) for each in asked]
            things.append(_thing(object_, values, labels))
            chances = [float(each.values[row, object_]) for each in asked]
            confidences.append(float(presence[row, object_]) * float(torch.tensor(chances).prod()))
        side = None
        if two:
            pair = pairs.index((objects[0], objects[1]))
            side = labels["relation"][int(relation[row, pair])]
        scene = Scene(tuple(things), labels["place"][int(place.indices[row])], side)
        found.append(Recognized(scene, tuple(confidences), float(place.values[row]), float(in_domain[row])))
    return found


def _thing(object_: int, values: Sequence[int], labels: Labels) -> Thing:
    """The thing with these numbers of object, colour, action, size and, where it is read, count."""
    colour, action, size, *count = values
    return Thing(
        labels["object"][object_],
        labels["colour"][colour],
        labels["action"][action - 1] if action else None,
        labels["size"][size],
        count[0] + 1 if count else 1,
    )


UNMET = 3.0
"""What is taken off the logit of an action in training where the object was never met in it.

Otherwise a model learns from the mere absence of sitting horses that a horse does not sit. It is a logit adjustment
(Menon et al., 2021) that knows of two frequencies only: met and not met.
"""


def recognition_loss(
    reading: Reading,
    slots: Tensor,
    inside: Tensor,
    coloured: Tensor,
    upright: Tensor,
    where: Tensor,
    met: Tensor,
) -> dict[str, Tensor]:
    """Cross entropies by head.

    Args:
        slots: what the pictures show, int64 (B, 12), see `workers.scenes.grammar.slots`; ignored where not `inside`.
            What is not known is not asked for: 0 but for the objects, or −1 for an action.
        inside: whether a picture is of the drawn world, bool (B,).
        coloured: whether its colours are the true ones, bool (B,); others are not asked for.
        upright: whether it is neither turned nor stretched, bool (B,); others have no pose, size or relation.
        where: which cells of the 16×16 grid are in the things of a picture's first and second kind, and in the parts of
            them that tell what they are, bool (B, 2, 2, 256); all of them where that is not known.
        met: which objects are met in which actions, bool (10, 7).
    """
    rows = inside.nonzero().squeeze(1)
    slots = slots[inside]
    losses = {
        **_location_losses(reading.evidence.float()[rows], reading.gaze.float()[rows], slots, where[inside]),
        "place": _known_entropy(reading.place.float()[rows], slots[:, 10] - 1),
        "domain": nn.functional.binary_cross_entropy_with_logits(reading.domain.float(), inside.float()),
    }
    two = slots[:, 5] > 0
    picture = torch.cat([rows, rows[two]])
    thing = torch.cat([slots[:, 0:5], slots[two, 5:10]])
    object_ = thing[:, 0] - 1
    targets = {
        "colour": (thing[:, 1] - 1).where(coloured[picture], -1),
        "action": thing[:, 2].where(upright[picture], -1),
        "size": (thing[:, 3] - 1).where(upright[picture], -1),
        "count": thing[:, 4] - 1,
    }
    for role, target in targets.items():
        logits = getattr(reading, role).float()[picture, object_]
        if role == "action":
            logits = logits - _unmet(met)[object_]
        losses[role] = _known_entropy(logits, target)
    related = two & upright[rows]
    if related.any():
        pair = _pair_numbers(slots[related, 0] - 1, slots[related, 5] - 1, reading.presence.shape[1])
        logits = reading.relation.float()[rows[related], pair]
        losses["relation"] = _known_entropy(logits, slots[related, 11] - 1)
    return losses


def _unmet(met: Tensor) -> Tensor:
    """What is taken off the logits of actions, (10, 7), from which objects are met in which of them."""
    # Only of what acts at all: that a house never does is worth learning.
    acts = met.sum(1, keepdim=True) > 1
    return UNMET * (acts & ~met)


def _pair_numbers(first: Tensor, second: Tensor, objects: int) -> Tensor:
    """Numbers of pairs of objects, the first below the second, in the order of `PAIRS`, (B,)."""
    before = first * (2 * objects - first - 1) // 2
    return before + (second - first - 1)


def _known_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy where the target is known, that is not −1."""
    total = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    # Over at least one, because a batch may ask for no colour at all.
    return total / (target >= 0).sum().clamp(min=1)


def _location_losses(evidence: Tensor, gaze: Tensor, slots: Tensor, where: Tensor) -> dict[str, Tensor]:
    """Losses of where objects are found and read.

    Evidence of an object has to come from its telling part, and none from anywhere else; attributes are read off the
    whole of it.
    """
    softplus = nn.functional.softplus
    near = where.new_zeros(len(slots), evidence.shape[1] + 1, *where.shape[2:])
    near.scatter_(1, slots[:, [0, 5], None, None].expand_as(where), where)
    whole, telling = near[:, 1:].unbind(2)
    there = evidence.masked_fill(~telling, -100.0).logsumexp(2)
    elsewhere = evidence.masked_fill(telling, -100.0).logsumexp(2)
    presence = softplus(elsewhere) + softplus(-there).where(telling.any(2), 0.0)
    on_it = (gaze * whole).sum(2).clamp_min(1e-6)
    strayed = -on_it.log()[whole.any(2)]
    return {"presence": 8 * presence.mean(), "gaze": 0.3 * strayed.mean()}
