"""Pairs: a request may go to two replicas, one for its prompt and one for its text."""

from __future__ import annotations

from random import Random

import attrs

from anyserve.capability import Capability
from anyserve.errors import InvalidArgument
from anyserve.pairs import DECODE, DISAGGREGATION, MODEL, PREFILL
from anyserve_scheduler.routing.choose import Known, choose, choose_from
from anyserve_scheduler.routing.decision import Decision, Hints, NoRoute

_PREFILL = Capability(PREFILL, {DISAGGREGATION: PREFILL})


def route(
    need: Capability, hints: Hints, known: Known, now: float, rng: Random
) -> Decision | NoRoute:
    """Where a request goes: to a pair, unless one offer alone serves it sooner.

    Nothing is changed but `rng`.
    """
    paired = pair(need, hints, known, now, rng)
    if paired is not None and paired.expected_wait <= 0:
        return paired
    alone = choose(need, hints, known, now, rng)
    if paired is None or (
        isinstance(alone, Decision) and alone.expected_wait < paired.expected_wait
    ):
        return alone
    return paired


def pair(need: Capability, hints: Hints, known: Known, now: float, rng: Random) -> Decision | None:
    """The two halves that begin soonest, of one model; None where there are no two.

    The decode half is chosen by load: what it caches of a prompt is of no use to it. The prefill
    half is chosen as any replica is, by load, session and what it caches.
    """
    candidates = known.candidates
    halves = candidates.halves, candidates.suspect_halves
    if not any(halves) or need.attributes.get(DISAGGREGATION, DECODE) != DECODE:
        return None
    by_load = attrs.evolve(hints, session=None, blocks=())
    best = None
    for model in _models(known):
        wanted = _decode_half(need, model)
        if wanted is None:
            continue
        decode = choose_from(*halves, wanted, by_load, known, now, rng)
        if decode is None:
            continue
        prefill = choose_from(*halves, prefill_need(model), hints, known, now, rng)
        if prefill is None:
            continue
        wait = max(decode.expected_wait, prefill.expected_wait)
        if best is None or wait < best.expected_wait:
            best = attrs.evolve(decode, expected_wait=wait, prefill=prefill)
    return best


def prefill_need(model: str) -> Capability:
    """What the prefill half of a pair for `model` satisfies."""
    return Capability(PREFILL, {DISAGGREGATION: PREFILL, MODEL: model})


def _models(known: Known) -> list[str]:
    """Those that there are prefill halves for."""
    candidates = known.candidates
    kinds = (
        kind.capability
        for index in (candidates.halves, candidates.suspect_halves)
        for pool in index.matched(_PREFILL)
        for kind in pool.kinds
    )
    found = (capability.attributes.get(MODEL) for capability in kinds)
    return sorted({model for model in found if isinstance(model, str)})


def _decode_half(need: Capability, model: str) -> Capability | None:
    """What the decode half satisfies; None where no half of this model can."""
    if need.attributes.get(MODEL, model) != model:
        return None
    attributes = {**need.attributes, DISAGGREGATION: DECODE, MODEL: model}
    try:
        return Capability(need.name, attributes, need.version)
    except InvalidArgument:
        return None  # more attributes than an offer can have
