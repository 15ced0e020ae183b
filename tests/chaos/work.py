"""Work of all kinds whose results are known beforehand, and what is wrong with what came of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image
from standardwebhooks.webhooks import Webhook

from shared.intake.images import encode_png
from shared.objects.storage import ObjectStore, file_key
from tests.support.fakes import seed_colour
from tests.support.system import TENANT, System
from tests.support.webhooks import SECRET, Receiver
from tuwen.errors import Conflict, DatabaseUnavailable, QueueUnavailable
from tuwen.jobs import (
    DescribeResult,
    GenerateResult,
    Job,
    JobRequest,
    MatchResult,
    RecognizeResult,
    Status,
    StoredImage,
)

Check = Callable[[Job], str | None]
"""What is wrong with a job that is over; None when nothing is."""

HOOKED = 5
"""Every so many jobs has a webhook."""
MANY = 500
"""Jobs that are submitted or read at a time."""


@dataclass(frozen=True)
class Order:
    """A request, and what is to come of it."""

    input: dict[str, Any]
    check: Check
    status: Status = Status.SUCCEEDED
    cancelled: bool = False
    """Whether it is cancelled right after it was submitted; it may be over before."""


class Work:
    """Orders jobs as clients do, and remembers what each of them has to become."""

    def __init__(self, system: System, dice: random.Random, receivers: Sequence[Receiver] = ()):
        self._system = system
        self._dice = dice
        self._receivers = receivers
        self._store = ObjectStore.open(system.settings)
        self._colours = [(number, 100, 77) for number in range(20)]
        self._files = [self._upload(colour) for colour in self._colours]
        self.ordered: dict[UUID, Order] = {}
        self.hooked: dict[UUID, Receiver] = {}

    def _upload(self, colour: tuple[int, int, int]) -> str:
        data = encode_png(np.full((8, 8, 3), colour, np.uint8))
        digest = sha256(data).hexdigest()
        self._store.put(file_key(TENANT, digest), data, "image/png")
        return digest

    def submit(self, count: int) -> int:
        """Submit so many jobs of all kinds, if PostgreSQL is there. Returns how many were accepted."""
        orders = [self._order() for _ in range(count)]
        hooks = [self._dice.choice(self._receivers) if self._wants_hook() else None for _ in orders]
        requests = [
            JobRequest.model_validate({"input": order.input, "webhook": hook and hook.url})
            for order, hook in zip(orders, hooks, strict=True)
        ]
        try:
            submission = self._system.database.jobs.submit(requests, tenant=TENANT)
        except DatabaseUnavailable:  # the caller knows
            return 0
        self.ordered.update(zip(submission.ids, orders, strict=True))
        self.hooked.update({id: hook for id, hook in zip(submission.ids, hooks, strict=True) if hook})
        with suppress(QueueUnavailable):  # then the housekeeper does it
            self._system.queue.publish(submission.dispatches)
        for id, order in zip(submission.ids, orders, strict=True):
            if order.cancelled:
                self._cancel(id)
        return count

    def _wants_hook(self) -> bool:
        return bool(self._receivers) and self._dice.randrange(HOOKED) == 0

    def _cancel(self, id: UUID) -> None:
        with suppress(DatabaseUnavailable, QueueUnavailable, Conflict):  # then it is done
            self._system.database.jobs.cancel(id, TENANT)
            self._system.queue.request_cancel(id)

    def _order(self) -> Order:
        makers: dict[Callable[[], Order], int] = {
            self._generate: 50,
            self._generate_slowly: 3,
            self._generate_candidates: 4,
            self._generate_in_vain: 1,
            self._generate_and_cancel: 2,
            self._describe: 16,
            self._describe_the_best: 2,
            self._recognize: 12,
            self._match: 10,
        }
        [make] = self._dice.choices(list(makers), list(makers.values()))
        return make()

    # ── orders ────────────────────────────────────────────────────────────────────────────────────

    def _generate(self, prompt: str = "cat", **changed: Any) -> Order:
        seed = self._dice.randrange(2**40)

        def check(job: Job) -> str | None:
            if not isinstance(job.result, GenerateResult) or job.result.seed != seed:
                return "drew with another seed"
            return self._wrong_picture(job.result.image, seed)

        return Order({"kind": "generate", "prompt": prompt, "seed": seed}, check, **changed)

    def _generate_slowly(self) -> Order:
        return self._generate("sleep 0.3")

    def _generate_and_cancel(self) -> Order:
        return self._generate("sleep 0.3", cancelled=True)

    def _generate_in_vain(self) -> Order:
        return Order({"kind": "generate", "prompt": "reject"}, lambda _: None, Status.FAILED)

    def _generate_candidates(self) -> Order:
        seed, count = self._dice.randrange(2**40), self._dice.randrange(2, 5)

        def check(job: Job) -> str | None:
            result = job.result
            if not isinstance(result, GenerateResult) or result.seed not in range(seed, seed + count):
                return "drew with another seed"
            if sorted(each.seed for each in result.candidates) != list(range(seed, seed + count)):
                return "has other candidates"
            return self._wrong_picture(result.image, result.seed)

        return Order({"kind": "generate", "prompt": "cat", "seed": seed, "candidates": count}, check)

    def _wrong_picture(self, image: StoredImage, seed: int) -> str | None:
        pixels = np.asarray(Image.open(BytesIO(self._store.get(image.key))).convert("RGB"))
        return None if tuple(pixels[0, 0].tolist()) == seed_colour(seed) else "shows another's picture"

    def _picture(self) -> tuple[dict[str, str], tuple[int, int, int]]:
        number = self._dice.randrange(len(self._files))
        return {"file_id": self._files[number]}, self._colours[number]

    def _describe(self, **more: Any) -> Order:
        image, colour = self._picture()
        said = f"the colour {'-'.join(map(str, colour))}"

        def check(job: Job) -> str | None:
            right = isinstance(job.result, DescribeResult) and job.result.text == said
            return None if right else f"does not say {said}"

        return Order({"kind": "describe", "image": image, **more}, check)

    def _describe_the_best(self) -> Order:
        return self._describe(rerank=3)

    def _recognize(self) -> Order:
        image, _ = self._picture()

        def check(job: Job) -> str | None:
            right = isinstance(job.result, RecognizeResult) and [each.name for each in job.result.objects] == ["cat"]
            return None if right else "sees no cat"

        return Order({"kind": "recognize", "image": image}, check)

    def _match(self) -> Order:
        image, _ = self._picture()
        text = "a" * self._dice.randrange(1, 50)

        def check(job: Job) -> str | None:
            right = isinstance(job.result, MatchResult) and abs(job.result.score - 1 / (1 + len(text))) < 1e-6
            return None if right else "has another's score"

        return Order({"kind": "match", "image": image, "text": text}, check)

    # ── what came of them ─────────────────────────────────────────────────────────────────────────

    @property
    def unfinished(self) -> int:
        """How many jobs of anybody's are not over."""
        return sum(state.queued + state.running for state in self._system.database.jobs.queues().values())

    def jobs(self) -> Iterator[Job]:
        """Every job that was ordered."""
        ids = list(self.ordered)
        for start in range(0, len(ids), MANY):
            yield from self._system.jobs(ids[start : start + MANY])

    def mistakes(self, jobs: Sequence[Job]) -> Iterator[str]:
        """What is wrong with them, a line each."""
        found = {job.id: job for job in jobs}
        yield from (f"{id} is gone" for id in self.ordered.keys() - found.keys())
        for id, job in found.items():
            order = self.ordered[id]
            if job.status is Status.CANCELLED and order.cancelled:
                continue
            if job.status is not order.status:
                yield f"{id} {order.input} is {job.status}, not {order.status}: {job.error}"
            elif job.status is Status.SUCCEEDED and (wrong := order.check(job)):
                yield f"{id} {order.input} {wrong}: {job.result}"

    def undelivered(self, jobs: Sequence[Job]) -> Iterator[str]:
        """Webhooks that did not arrive, came unsigned, or told something else; a line each."""
        told: dict[UUID, Counter[str]] = {}
        for receiver in set(self.hooked.values()):
            for headers, body in receiver.deliveries:
                data = json.loads(body)["data"]
                if not _is_signed(headers, body):
                    yield f"{data['id']}: its webhook is not signed"
                told.setdefault(UUID(data["id"]), Counter())[data["status"]] += 1
        status = {job.id: job.status.value for job in jobs}
        for id in self.hooked:
            if list(told.get(id, {})) != [status[id]]:
                yield f"{id} is {status[id]}, and its receiver was told {dict(told.get(id, {}))}"


def _is_signed(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a delivery bears our signature. `Webhook.verify` would refuse it by now, since it is minutes old."""
    sent = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signature = Webhook(SECRET).sign(headers["webhook-id"], sent, body.decode())
    return signature in headers["webhook-signature"].split()
