"""The product's router, measured in simulation."""

from __future__ import annotations

import time
from array import array
from random import Random

from anyserve.capability import Capability
from anyserve_scheduler.routing import Decision, Hints, NoRoute, Policy, Router, Sent


class MeasuredRouter(Router):
    """A router that says what its decisions cost, and whether what it was told adds up."""

    def __init__(self, policy: Policy, rng: Random, costs: array[float]) -> None:
        """costs: takes the seconds of this machine's time, of each decision."""
        super().__init__(policy, rng)
        self._costs = costs
        self.open = 0
        """Requests sent and not ended."""

    def choose(self, need: Capability, hints: Hints, now: float) -> Decision | NoRoute:
        began = time.perf_counter()
        decision = super().choose(need, hints, now)
        self._costs.append(time.perf_counter() - began)
        return decision

    def sent(self, need: Capability, hints: Hints, decision: Decision, now: float) -> Sent:
        self.open += 1
        return super().sent(need, hints, decision, now)

    def ended(self, sent: Sent, now: float, *, served: bool) -> None:
        self.open -= not sent.ended
        super().ended(sent, now, served=served)
