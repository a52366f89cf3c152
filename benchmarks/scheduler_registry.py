"""What the scheduler's registry costs: µs for a report, a snapshot, a look-up, a lease that ends.

python -m benchmarks.scheduler_registry
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import partial

import attrs
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.registration import Registration, Report
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import PREFIX, Router
from anyserve_scheduler.watched import WatchedRegistry

from anyserve.capability import Capability
from anyserve.load import Load
from benchmarks.tables import number, table

REPLICAS = 1_000
SILENT = 10_000
CAPABILITIES = tuple(
    f"{name}.{kind}" for name in ("decode", "prefill", "embedding", "rank") for kind in ("a", "b")
)
_ROUNDS = 5
_REPORTS = 10
"""Of each replica in a round."""
_LOADS = tuple(Load(running, 3, 8, 0.25, 80.0) for running in range(1, 8))


@attrs.define
class _Fleet:
    """A registry whose replicas report in turn, 2 s apart each."""

    registry: MemoryRegistry = attrs.field(factory=MemoryRegistry)
    epochs: dict[str, int] = attrs.field(factory=dict)
    sequence: int = 0
    now: float = 0.0

    def register(self) -> None:
        """Let all join."""
        offers = [OfferView(Capability(name), _LOADS[0], 64, True) for name in CAPABILITIES]
        for index in range(REPLICAS):
            id = f"replica-{index:04}"
            registration = Registration(id, b"instance", f"10.0.0.1:{index + 1}", offers)
            self.epochs[id] = self.registry.register(registration, self.now).epoch

    def report(self, loads: int) -> None:
        """Let each report once, so many of its loads."""
        self.sequence += 1
        named = dict.fromkeys(CAPABILITIES[:loads], _LOADS[self.sequence % len(_LOADS)])
        report = Report(self.sequence, named)
        for id, epoch in self.epochs.items():
            self.now += 2.0 / REPLICAS
            self.registry.report(id, epoch, report, self.now)

    def snapshot(self) -> None:
        """Take one, and find out who offers what, as often as there are replicas."""
        for _ in range(REPLICAS):
            self.registry.fleet()

    def offering(self) -> None:
        """Find who serves a name; all do."""
        assert len(self.registry.fleet().offering("decode")) == REPLICAS


def run() -> None:
    """Print the table."""
    fleet = _Fleet()
    rows = [("a registration", _cpu(fleet.register, 1))]
    for loads in (0, 1, 2, 4, 8):
        what = f"a report of {loads} of {len(CAPABILITIES)} loads"
        rows.append((what, _least(partial(fleet.report, loads))))
    rows.append(("a snapshot", _least(fleet.snapshot)))
    rows.append(("a replica of those that serve a name", _least(fleet.offering)))
    ended, longest = _silence()
    rows.append((f"each of {SILENT:,} that are out at once, routing told", ended))
    rows.append(("the longest that others wait meanwhile", longest))
    print(table(("", "CPU µs"), [(what, number(each)) for what, each in rows]))


def _silence() -> tuple[float, float]:
    """Let all replicas of a large fleet fall silent; µs for each, and for the longest look."""
    registry = WatchedRegistry(MemoryRegistry())
    registry.follow(Router(PREFIX, random.Random(1)).follow)
    offers = [OfferView(Capability(name), _LOADS[0], 64, True) for name in CAPABILITIES]
    for index in range(SILENT):
        registry.register(Registration(f"{index}", b"instance", "10.0.0.1:1", offers), 0.0)
    looks = []
    while registry.due() < math.inf:
        start = time.process_time()
        registry.expire(registry.due())
        looks.append(time.process_time() - start)
    return sum(looks) / SILENT * 1e6, max(looks) * 1e6


def _least(action: Callable[[], None]) -> float:
    """µs of CPU an operation, the best of the rounds."""
    return min(_cpu(action, _REPORTS) for _ in range(_ROUNDS))


def _cpu(action: Callable[[], None], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start) / (times * REPLICAS) * 1e6


if __name__ == "__main__":
    run()
