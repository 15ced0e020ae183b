"""The recogniser: a CNN with one attention query for each object, and heads that all objects share.

Because colour, action, size and count are read by the same heads from whatever the object's query looks at, a colour
learnt on one object carries over to the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits for a batch of B pictures; attributes have a row for each of the 10 objects, true where it is present."""

    presence: Tensor
    """(B, 10)"""
    colour: Tensor
    """(B, 10, 8)"""
    action: Tensor
    """(B, 10, 7); the first is standing still."""
    size: Tensor
    """(B, 10, 2)"""
    count: Tensor
    """(B, 10, 4)"""
    place: Tensor
    """(B, 6)"""
    relation: Tensor
    """(B, 45, 4), of the first object of each of `PAIRS` to the second."""
    domain: Tensor
    """(B,), positive in the drawn world."""


class Recognizer(nn.Module):
    def __init__(self, width: int = WIDTH, dropout: float = 0.1, labels: Labels = KEYS):
        super().__init__()
        self.labels = labels
        objects = len(labels["object"])
        self.trunk = Trunk(width)
        self.queries = nn.Parameter(torch.randn(objects, width) * width**-0.5)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.presence = nn.Linear(2 * width, objects)
        self.presence_own = nn.Linear(width, 1)
        self.colour = nn.Linear(width, len(labels["colour"]))
        self.action = nn.Linear(width, len(labels["action"]) + 1)
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
        tokens = self.trunk(images)
        whole = torch.cat([tokens.mean(1), tokens.amax(1)], 1)
        attention = (self.queries @ self.keys(tokens).transpose(1, 2)).softmax(-1)
        seen = self.dropout(attention @ self.values(tokens))
        centres = attention.float() @ self.cells
        pairs = torch.cat(
            [
                (centres[:, self.first] - centres[:, self.second]).to(seen.dtype),
                seen[:, self.first],
                seen[:, self.second],
            ],
            -1,
        )
        whole_each = tokens.mean(1, keepdim=True).expand(-1, len(self.queries), -1)
        return Reading(
            self.presence(whole) + self.presence_own(seen).squeeze(-1),
            self.colour(seen),
            self.action(seen),
            self.size(seen),
            self.count(torch.cat([seen, whole_each], -1)),
            self.place(whole),
            self.relation(pairs),
            self.domain(tokens),
        )


@dataclass(frozen=True, slots=True)
class Recognized:
    """What the recogniser makes of one picture."""

    scene: Scene
    confidences: tuple[float, ...]
    """For each thing: the probability of its object times those of its attributes."""
    place_confidence: float
    in_domain: float
    """Probability that the picture is of the drawn world."""


def interpret(reading: Reading, labels: Labels = KEYS) -> list[Recognized]:
    """The most likely scene for each picture: one thing, or two where a second object is more likely than not."""
    pairs = list(combinations(range(len(labels["object"])), 2))
    presence = reading.presence.float().sigmoid()
    attributes = [t.float().softmax(-1).max(-1) for t in (reading.colour, reading.action, reading.size, reading.count)]
    place = reading.place.float().softmax(-1).max(-1)
    relation = reading.relation.argmax(-1)
    in_domain = reading.domain.float().sigmoid()
    found = []
    for i in range(presence.shape[0]):
        best = presence[i].topk(2)
        two = bool(best.values[1] > 0.5)
        chosen = sorted(best.indices[: 2 if two else 1].tolist())
        things, confidences = [], []
        for k in chosen:
            (colour, action, size, count) = (int(a.indices[i, k]) for a in attributes)
            name = labels["object"][k]
            act = labels["action"][action - 1] if action else None
            # Only single things come in two kinds.
            number = 1 if two else count + 1
            things.append(Thing(name, labels["colour"][colour], act, labels["size"][size], number))
            parts = [float(a.values[i, k]) for a in attributes[: 3 if two else 4]]
            confidences.append(float(presence[i, k]) * float(torch.tensor(parts).prod()))
        side = labels["relation"][int(relation[i, pairs.index((chosen[0], chosen[1]))])] if two else None
        scene = Scene(tuple(things), labels["place"][int(place.indices[i])], side)
        found.append(Recognized(scene, tuple(confidences), float(place.values[i]), float(in_domain[i])))
    return found


def recognition_loss(
    reading: Reading, slots: Tensor, inside: Tensor, coloured: Tensor, upright: Tensor
) -> dict[str, Tensor]:
    """Cross entropies by head.

    Args:
        slots: what the pictures show, int64 (B, 12), see `workers.scenes.grammar.slots`; ignored where not `inside`.
            What is not known is not asked for: 0 but for the objects, or −1 for an action.
        inside: whether a picture is of the drawn world, bool (B,).
        coloured: whether its colours are the true ones, bool (B,); others are not asked for.
        upright: whether it is neither turned nor stretched, bool (B,); pose, size and relation are else not asked for.
    """
    domain = nn.functional.binary_cross_entropy_with_logits(reading.domain.float(), inside.float())
    objects = reading.presence.shape[1]
    slots, rows = slots[inside], inside.nonzero().squeeze(1)
    present = torch.zeros(len(rows), objects + 1, device=slots.device)
    present.scatter_(1, slots[:, [0, 5]], 1.0)
    losses = {
        "presence": 4 * nn.functional.binary_cross_entropy_with_logits(reading.presence.float()[rows], present[:, 1:]),
        "place": _known_entropy(reading.place.float()[rows], slots[:, 10] - 1),
        "domain": domain,
    }
    two, straight = slots[:, 5] > 0, upright[rows]
    picture = torch.cat([rows, rows[two]])
    thing = torch.cat([slots[:, 0:5], slots[two, 5:10]])
    object_ = thing[:, 0] - 1
    targets = {"colour": thing[:, 1] - 1, "action": thing[:, 2], "size": thing[:, 3] - 1, "count": thing[:, 4] - 1}
    targets["colour"] = targets["colour"].where(coloured[picture], -1)
    for role in ("action", "size"):
        targets[role] = targets[role].where(upright[picture], -1)
    for role, target in targets.items():
        losses[role] = _known_entropy(getattr(reading, role).float()[picture, object_], target)
    two = two & straight
    if two.any():
        a, b = slots[two, 0] - 1, slots[two, 5] - 1
        pair = a * (2 * objects - a - 1) // 2 + (b - a - 1)
        losses["relation"] = _known_entropy(reading.relation.float()[rows[two], pair], slots[two, 11] - 1)
    return losses


def _known_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy where the target is known, that is not −1."""
    total = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    # Over at least one, because a batch may ask for no colour at all.
    return total / (target >= 0).sum().clamp(min=1)
