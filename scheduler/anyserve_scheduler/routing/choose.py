"""The decision: which replica a request goes to."""

from __future__ import annotations

import sys
from collections.abc import Container
from random import Random

import attrs

from anyserve.capability import Capability
from anyserve_scheduler.routing.candidates import Candidates
from anyserve_scheduler.routing.decision import Decision, Hints, NoRoute, Why
from anyserve_scheduler.routing.index import Index
from anyserve_scheduler.routing.policy import Policy
from anyserve_scheduler.routing.pools import Candidate, Pool
from anyserve_scheduler.routing.prefix import PrefixTable
from anyserve_scheduler.routing.refusals import no_route
from anyserve_scheduler.routing.sessions import Sessions

_LONGEST = sys.float_info.max
"""Seconds that a request without a deadline may wait; an infinite wait is too long for it too."""


@attrs.frozen
class Known:
    """All that a decision is taken from beside the request."""

    candidates: Candidates
    prefixes: PrefixTable
    sessions: Sessions
    policy: Policy


def choose(
    need: Capability, hints: Hints, known: Known, now: float, rng: Random
) -> Decision | NoRoute:
    """Where a request with this need goes, which one offer serves. Nothing is changed but `rng`.

    Among the candidates that satisfy, the least powerful ones that can take it before its deadline;
    among these, by the policy. Suspect replicas are for what no live one can take.
    """
    candidates = known.candidates
    found = choose_from(candidates.live, candidates.suspect, need, hints, known, now, rng)
    return no_route(need, hints, candidates) if found is None else found


def choose_from(
    lively: Index,
    suspect: Index,
    need: Capability,
    hints: Hints,
    known: Known,
    now: float,
    rng: Random,
) -> Decision | None:
    """The same among these; None where none of them can take it."""
    within = min(hints.budget, _LONGEST)
    live = lively.matched(need)
    if hints.session is not None and live:
        candidate = _place_of_session(need, hints, known, live, within, now)
        if candidate is not None:
            return decided(candidate, (Why.SESSION,))
    for rank, pool in enumerate(live):
        found = _in_pool(pool, hints, known, within, now, rng)
        if found is not None:
            candidate, why = found
            return decided(candidate, (why, Why.SPILLED) if rank else (why,))
    for pool in suspect.matched(need):
        found = _in_pool(pool, hints, known, within, now, rng)
        if found is not None:
            candidate, why = found
            return decided(candidate, (why, Why.SUSPECT))
    return None


def decided(candidate: Candidate, reasons: tuple[Why, ...]) -> Decision:
    """The decision for `candidate`."""
    view = candidate.home.view
    return Decision(
        view.id, view.epoch, view.address, candidate.offer.capability, candidate.wait, reasons
    )


def relative_load(candidate: Candidate, pool: Pool) -> float:
    """A candidate's requests for each slot against the mean of its pool, without a unit."""
    return candidate.pressure / _full(pool)


def _full(pool: Pool) -> float:
    """The mean that loads are put in relation to.

    A fleet that has slots free counts as just full, so that one request on an idle fleet is not
    many times the mean.
    """
    return max(pool.mean, 1.0)


def _in_pool(
    pool: Pool, hints: Hints, known: Known, within: float, now: float, rng: Random
) -> tuple[Candidate, Why] | None:
    """One of equally powerful candidates, by the policy; None if none can take it in time."""
    found = _by_wait(pool, hints.excluded, known.policy.fresh, within, now, rng)
    if found is None or not hints.blocks or not known.policy.prefix:
        return found
    holder = _by_prefix(found[0], pool, hints, known, within)
    return found if holder is found[0] else (holder, Why.PREFIX)


def _by_wait(
    pool: Pool, excluded: Container[str], fresh: float, within: float, now: float, rng: Random
) -> tuple[Candidate, Why] | None:
    """The least wait while its load is fresh; the better of two that can take it otherwise."""
    if fresh > 0:
        least = pool.least(excluded)
        if least is None or least.wait > within:
            return None
        if now - least.home.view.reported <= fresh:
            return least, Why.LEAST_WAIT
    drawn = _of_two(pool, excluded, within, rng)
    if drawn is not None:
        return drawn, Why.TWO_CHOICES
    least = pool.least(excluded)
    if least is None or least.wait > within:
        return None
    return least, Why.DRAWN_IN_VAIN


def _of_two(pool: Pool, excluded: Container[str], within: float, rng: Random) -> Candidate | None:
    """The better of two members drawn at random, of those of them that can take it."""
    members = pool.members
    count = len(members)
    first = second = members[int(rng.random() * count)]
    if count > 1:
        # Any of the others, each equally likely: the last one stands in for the first draw.
        second = members[int(rng.random() * (count - 1))]
        if second is first:
            second = members[-1]
    first_can = first.wait <= within and first.key[0] not in excluded
    second_can = second.wait <= within and second.key[0] not in excluded
    if first_can and second_can:
        better = (second.wait, second.pressure) < (first.wait, first.pressure)
        return second if better else first
    if first_can:
        return first
    return second if second_can else None


def _by_prefix(base: Candidate, pool: Pool, hints: Hints, known: Known, within: float) -> Candidate:
    """The candidate with the best score among `base` and those that hold the prompt's beginning.

    The score is the matched fraction of this prompt less the relative load, weighted. Ties go to
    `base`.
    """
    matches = known.prefixes.matches(hints.blocks)
    if not matches:
        return base
    weight = known.policy.load_weight / _full(pool)
    count = len(hints.blocks)
    best, best_score = base, -weight * base.pressure
    holders = []
    for key, depth in matches:
        candidate = known.candidates.get(key)
        if candidate is base:
            best_score += depth / count
        elif (
            candidate is not None
            and candidate.wait <= within
            and candidate in pool
            and key[0] not in hints.excluded
        ):
            holders.append((depth / count - weight * candidate.pressure, candidate))
    for score, candidate in holders:
        if score > best_score:
            best, best_score = candidate, score
    return best


def _place_of_session(
    need: Capability,
    hints: Hints,
    known: Known,
    live: tuple[Pool, ...],
    within: float,
    now: float,
) -> Candidate | None:
    """Where the request's session is, if it may stay there."""
    assert hints.session is not None
    place = known.sessions.place(need.name, hints.session, now)
    if place is None or place.key[0] in hints.excluded:
        return None
    candidate = known.candidates.get(place.key)
    if candidate is None or candidate.home.view.epoch != place.epoch or candidate.wait > within:
        return None
    for pool in live:
        if candidate in pool:
            over = relative_load(candidate, pool) > known.policy.session_factor
            return None if over else candidate
    return None
