"""A search for a schedule of arrivals and faults that breaks an invariant of the fleet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.routing import POLICIES
from anyserve_scheduler.simulate import Scenario, run
from anyserve_scheduler.simulate.arrivals import Arrival
from anyserve_scheduler.simulate.scenario import (
    FAULTS,
    FaultSpec,
    GroupSpec,
    OfferSpec,
    TrafficSpec,
)
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from anyserve.capability import Capability
from anyserve.deadlines import Deadlines

GROUPS = (
    GroupSpec("d", 2, (OfferSpec(Capability("decode"), slots=1, queue=1),)),
    GroupSpec("h", 1, (OfferSpec(Capability("decode.heavy"), slots=1, queue=0),)),
)
RESUMABLE = tuple(
    attrs.evolve(group, offers=tuple(attrs.evolve(offer, resumable=True) for offer in group.offers))
    for group in GROUPS
)
NEEDS = tuple(Capability(name) for name in ("decode", "decode.heavy"))
REPLICAS = [id for group in GROUPS for id in group.ids]


def moments(most: float) -> st.SearchStrategy[float]:
    """Times on a grid, so that things happen at once and shrink to round numbers."""
    return st.integers(0, int(most * 4)).map(lambda quarters: quarters / 4)


def one_of_all(*choices: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of each, in a single draw, the first ones where it is shrunk.

    What hypothesis leaves out in one step are a few draws in a row: a request or a fault of more
    than that would never go as a whole.
    """
    return st.sampled_from(list(itertools.product(*choices)))


@st.composite
def requests(draw: st.DrawFn) -> Arrival:
    at = draw(moments(12))
    need, deadline, service, answers = draw(
        one_of_all(NEEDS, [math.inf, 0.0001, 0.2, 1.0, 3.0], [0.01, 0.25, 1.0, 4.0], [1, 3])
    )
    direct, patience, session, blocks = draw(
        one_of_all([False, True], [math.inf, 0.1, 1.0], [None, "a"], [(), (b"1", b"2")])
    )
    traffic = TrafficSpec(need=need, kind="poisson", rate=1.0, deadline=deadline, answers=answers)
    return Arrival(at, traffic, service, direct, at + patience, session, blocks)


@st.composite
def faults(draw: st.DrawFn) -> FaultSpec:
    at, duration = draw(moments(12)), draw(moments(8)) + 0.25
    kind, replica, factor, probability, capability = draw(
        one_of_all(FAULTS, REPLICAS, [0.5, 3.0, 10.0], [0.5, 1.0], [need.name for need in NEEDS])
    )
    return FaultSpec(kind, replica, at, duration, factor, probability, capability)


scenarios = st.builds(
    Scenario,
    name=st.just("searched"),
    groups=st.sampled_from([GROUPS, RESUMABLE, (RESUMABLE[0], GROUPS[1])]),
    traffic=st.just(()),
    faults=st.lists(faults(), max_size=6).map(tuple),
    seed=st.integers(0, 3),
    latency=st.sampled_from([0.0, 0.001, 0.3]),
    terms=st.sampled_from([LeaseTerms(3.0, 0.5, 0.2), LeaseTerms()]),
)
traces = st.lists(requests(), min_size=1, max_size=25).map(
    lambda trace: sorted(trace, key=lambda arrival: arrival.at)
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(scenarios, traces, st.sampled_from(sorted(POLICIES)))
def test_no_schedule_of_arrivals_and_faults_breaks_an_invariant(
    scenario: Scenario, trace: list[Arrival], policy: str
) -> None:
    result = run(scenario, policy, trace)
    assert not result.violations
    assert sum(result.outcomes.values()) == len(trace)


def test_the_search_finds_a_fault_of_the_product_and_shrinks_it_to_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Deadlines, "expire", lambda self, now: math.inf)
    (culprit,) = find(
        traces,
        lambda trace: run(Scenario("searched", GROUPS, ()), "prefix", trace).broken > 0,
        settings=settings(QUICK, derandomize=True, phases=[Phase.generate, Phase.shrink]),
    )
    assert culprit.traffic.deadline < culprit.service
