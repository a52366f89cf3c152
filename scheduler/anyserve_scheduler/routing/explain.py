"""The reasons of a decision, in words and as JSON. Made only when asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from random import Random
from typing import Any

import attrs

from anyserve.capability import Capability
from anyserve_scheduler.fleet import ReplicaState
from anyserve_scheduler.routing.choose import Known, relative_load
from anyserve_scheduler.routing.decision import Decision, Hints, NoRoute, Why
from anyserve_scheduler.routing.index import Index
from anyserve_scheduler.routing.pairing import route
from anyserve_scheduler.routing.pools import Candidate, Pool

_SHOWN = 32
"""Candidates in an explanation: the chosen one, and the best of the others."""


@attrs.frozen
class Considered:
    """One candidate, and what speaks for it or against it."""

    replica: str
    capability: str
    """With its attributes."""
    wait: float
    """Seconds until the request would start there; infinite where it finds a full queue."""
    relative_load: float
    """Its load against the mean of equally powerful ones."""
    matched: float
    """Fraction of the prompt's blocks that it holds."""
    score: float
    """`matched` less the weighted relative load."""
    verdict: str
    """Why it was or was not taken."""

    def to_json(self) -> dict[str, Any]:
        """A value that `json.dumps` takes; an infinite number is None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in attrs.asdict(self).items()
        }


@attrs.frozen
class Explanation:
    """Where a request would go, and why."""

    need: str
    outcome: Decision | NoRoute
    considered: tuple[Considered, ...]
    """The chosen one first, then by power, state, wait and load."""
    left_out: int
    """Candidates beyond those."""

    def words(self) -> str:
        """Lines to read."""
        if isinstance(self.outcome, Decision):
            whys = "; ".join(self.outcome.reasons)
            if self.outcome.prefill is not None:
                whys += f"; its prompt goes to {self.outcome.prefill.replica}"
            lines = [
                f"{self.need} goes to {self.outcome.replica} for {self.outcome.capability}: {whys}"
            ]
        else:
            lines = [
                f"{self.need} goes nowhere ({self.outcome.status.name}): {self.outcome.message}"
            ]
        lines += [
            f"  {each.replica} ({each.capability}): {each.verdict};"
            f" wait {each.wait * 1000:.0f} ms, load {each.relative_load:.2f} of the mean,"
            f" {each.matched:.0%} of the prompt cached, score {each.score:.2f}"
            for each in self.considered
        ]
        if self.left_out:
            lines.append(f"  and {self.left_out} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A value that `json.dumps` takes."""
        outcome: dict[str, Any]
        if isinstance(self.outcome, Decision):
            outcome = {
                "replica": self.outcome.replica,
                "address": self.outcome.address,
                "capability": str(self.outcome.capability),
                "expected_wait": self.outcome.expected_wait,
                "reasons": list(self.outcome.reasons),
            }
            if self.outcome.prefill is not None:
                outcome["prefill"] = self.outcome.prefill.replica
        else:
            outcome = {"status": self.outcome.status.name, "message": self.outcome.message}
        return {
            "need": self.need,
            "outcome": outcome,
            "considered": [each.to_json() for each in self.considered],
            "left_out": self.left_out,
        }


def explain(need: Capability, hints: Hints, known: Known, now: float, rng: Random) -> Explanation:
    """What `route` would answer now, and why each candidate was or was not taken.

    `rng` is left as it is.
    """
    same = Random()
    same.setstate(rng.getstate())
    outcome = route(need, hints, known, now, same)
    candidates = known.candidates
    pools = [(pool, index) for index in candidates.indexes() for pool in index.matched(need)]
    account = _Account(hints, known, outcome)
    every: Iterator[Considered] = (
        account.of(each, pool, index) for pool, index in pools for each in pool
    )
    if account.taken is not None:
        # It may be far down, in a large fleet.
        every = itertools.chain(
            (
                account.of(account.taken, pool, index)
                for pool, index in pools
                if account.taken in pool
            ),
            (row for row in every if row.verdict != _TAKEN),
        )
    count = sum(len(pool.members) for pool, _ in pools)
    rows = tuple(itertools.islice(every, _SHOWN))
    return Explanation(str(need), outcome, rows, count - len(rows))


_TAKEN = "taken"


class _Account:
    """What speaks for and against each candidate of one request."""

    def __init__(self, hints: Hints, known: Known, outcome: Decision | NoRoute) -> None:
        self._hints = hints
        self._known = known
        self._depths = dict(known.prefixes.matches(hints.blocks))
        self.taken: Candidate | None = None
        self._reasons: tuple[Why, ...] = ()
        self._paired = False
        if isinstance(outcome, Decision):
            self.taken = known.candidates.get((outcome.replica, outcome.capability.name))
            self._reasons = outcome.reasons
            self._paired = outcome.prefill is not None

    def of(self, candidate: Candidate, pool: Pool, index: Index) -> Considered:
        """The account of a candidate, which is in `pool`, which is one of `index`."""
        load = relative_load(candidate, pool)
        matched = self._depths.get(candidate.key, 0) / max(len(self._hints.blocks), 1)
        return Considered(
            candidate.key[0],
            str(candidate.offer.capability),
            candidate.wait,
            load,
            matched,
            matched - self._known.policy.load_weight * load,
            self._verdict(candidate, index),
        )

    def _verdict(self, candidate: Candidate, index: Index) -> str:
        candidates, hints = self._known.candidates, self._hints
        if candidate is self.taken:
            return _TAKEN
        if index is candidates.draining:
            return "draining"
        if index is candidates.loadable:
            return "not loaded"
        if candidate.key[0] in hints.excluded:
            return f"excluded: {hints.excluded[candidate.key[0]]}"
        if candidate.slots == 0:
            return "no worker is ready"
        if math.isinf(candidate.wait):
            return "its queue is full"
        if candidate.wait > hints.budget:
            return f"it would start after the deadline, in {hints.budget * 1000:.0f} ms"
        half = index is candidates.halves or index is candidates.suspect_halves
        if half and not self._paired:
            return "half of a pair, and no pair can take it, or none as soon"
        if self._paired and not half:
            return "a pair takes it at once, or sooner"
        assert self.taken is not None, "what nothing speaks against is taken"
        taken, reason = self.taken, self._reasons[0]
        suspect = index is candidates.suspect or index is candidates.suspect_halves
        if suspect and taken.home.view.state is ReplicaState.LIVE:
            return "not heard of lately, and another can take it"
        if _tier(candidate) > _tier(taken):
            return "more powerful than it has to be"
        return _OTHERS[reason]


_OTHERS = {
    Why.SESSION: "its session is elsewhere",
    Why.PREFIX: "a lower score",
    Why.LEAST_WAIT: "a longer wait, or a higher load",
    Why.TWO_CHOICES: "not drawn, or the worse of two",
    Why.DRAWN_IN_VAIN: "a longer wait, or a higher load",
}
"""What is said of those that could have been taken, by the reason for the one that was."""


def _tier(candidate: Candidate) -> tuple[object, ...]:
    return () if candidate.kind is None else candidate.kind.tier
