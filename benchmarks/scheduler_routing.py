"""What a routing decision costs: µs among 1,000 replicas of 8 capabilities each.

python -m benchmarks.scheduler_routing
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from random import Random

import attrs
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, OfferView, ReplicaState
from anyserve_scheduler.fleet import ReplicaView as View
from anyserve_scheduler.routing import POLICIES, Hints, NoRoute, Policy, Router, Sent, block_hashes

from anyserve.capability import Capability
from anyserve.load import Load
from benchmarks.tables import number, table

REPLICAS = 1_000
CAPABILITIES = tuple(
    f"{name}.{kind}" for name in ("decode", "prefill", "embedding", "rank") for kind in ("a", "b")
)
PROMPT = 8_000
"""Bytes of a prompt of 2,000 tokens."""
_NEEDS = tuple(Capability(name) for name in ("decode", "prefill.a", "embedding", "rank.b"))
_OPEN = 4_000
"""Requests on their way: about half of the slots of what is asked for."""
_ROUNDS = 3
_REQUESTS = 10_000
"""In a round."""


@attrs.define
class _Costs:
    """Seconds of CPU that each part took, with about 0.5 µs for reading the clock."""

    hash: float = 0.0
    choose: float = 0.0
    sent: float = 0.0
    ended: float = 0.0
    reports: float = 0.0
    replicas: int = 0
    """That reported."""


@attrs.define
class _Traffic:
    """A router that is busy: each request that comes finds the oldest one ended."""

    router: Router
    hints: Callable[[int], Hints]
    """Those of a request, by its number."""
    now: float = 0.0
    open: deque[Sent] = attrs.field(factory=deque)
    requests: int = 0

    def round(self, count: int, costs: _Costs) -> None:
        """Send so many requests, 5,000 a second, while every replica reports each 2 s."""
        clock = time.thread_time
        for _ in range(count):
            self.requests += 1
            self.now += 1 / 5_000
            need = _NEEDS[self.requests % len(_NEEDS)]
            start = clock()
            hints = self.hints(self.requests)
            hashed = clock()
            decision = self.router.choose(need, hints, self.now)
            chosen = clock()
            assert not isinstance(decision, NoRoute)
            self.open.append(self.router.sent(need, hints, decision, self.now))
            sent = clock()
            if len(self.open) > _OPEN:
                self.router.ended(self.open.popleft(), self.now, served=True)
            ended = clock()
            costs.hash += hashed - start
            costs.choose += chosen - hashed
            costs.sent += sent - chosen
            costs.ended += ended - sent
            if self.requests % 10 == 0:
                change = _report(self.router.version + 1, self.requests // 10, self.now)
                before = clock()
                self.router.follow([change])
                costs.reports += clock() - before
                costs.replicas += 1


def _report(version: int, number: int, now: float) -> Change:
    view = _view(number % REPLICAS, Load(number % 7, 0, 8, 0.0, 80.0), now)
    return Change(version, ChangeKind.REPORTED, view.id, view)


def _view(index: int, load: Load, now: float) -> View:
    offers = {name: OfferView(Capability(name), load, 64, decoupled=True) for name in CAPABILITIES}
    address = f"10.0.0.1:{index + 1}"
    return View(f"replica-{index:04}", index + 1, address, ReplicaState.LIVE, offers, now)


def _prompts() -> Callable[[int], Hints]:
    """Conversations: 200 beginnings of 4,000 bytes, each ended in a way of its own."""
    rng = Random(1)
    beginnings = [rng.randbytes(PROMPT // 2) for _ in range(200)]
    endings = [rng.randbytes(PROMPT // 2) for _ in range(1_000)]

    def hints(request: int) -> Hints:
        prompt = beginnings[request % 200] + endings[request * 7 % 1_000]
        return Hints(budget=30.0, session=None, blocks=block_hashes(prompt))

    return hints


def run() -> None:
    """Print the table."""
    plain, prompts = Hints(budget=30.0), _prompts()
    rows = [
        ("least_wait", _measured(POLICIES["least_wait"], lambda _: plain)),
        ("power_of_two", _measured(POLICIES["power_of_two"], lambda _: plain)),
        ("prefix, no prompt", _measured(POLICIES["prefix"], lambda _: plain)),
        ("prefix, 2,000 tokens", _measured(POLICIES["prefix"], prompts)),
    ]
    heads = ("policy", "hash", "decision", "sent", "ended", "all", "report of 8 loads")
    print(table(heads, [(what, *map(number, costs)) for what, costs in rows]))


def _measured(policy: Policy, hints: Callable[[int], Hints]) -> tuple[float, ...]:
    """µs of hashing, choosing, sending, ending, all four, and of a report: the best round."""
    router = Router(policy, Random(1))
    router.follow(Fleet.of(_view(i, Load(2, 0, 8, 0.0, 80.0), 0.0) for i in range(REPLICAS)))
    traffic = _Traffic(router, hints)
    traffic.round(_OPEN, _Costs())
    found = []
    for _ in range(_ROUNDS):
        costs = _Costs()
        traffic.round(_REQUESTS, costs)
        parts = [costs.hash, costs.choose, costs.sent, costs.ended]
        request = [part / _REQUESTS * 1e6 for part in (*parts, sum(parts))]
        found.append((*request, costs.reports / costs.replicas * 1e6))
    return min(found, key=lambda each: each[4])


if __name__ == "__main__":
    run()
