"""A search for a schedule of arrivals and faults that breaks an invariant of the fleet."""

from __future__ import annotations

import math

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
NEEDS = tuple(Capability(name) for name in ("decode", "decode.heavy"))
REPLICAS = [id for group in GROUPS for id in group.ids]


def moments(most: float) -> st.SearchStrategy[float]:
    """Times on a grid, so that things happen at once and shrink to round numbers."""
    return st.integers(0, int(most * 4)).map(lambda quarters: quarters / 4)


@st.composite
def requests(draw: st.DrawFn) -> Arrival:
    at = draw(moments(12))
    patience = draw(st.sampled_from([math.inf, math.inf, 0.1, 1.0]))
    traffic = TrafficSpec(
        need=draw(st.sampled_from(NEEDS)),
        kind="poisson",
        rate=1.0,
        deadline=draw(st.sampled_from([math.inf, 0.0001, 0.2, 1.0, 3.0])),
    )
    return Arrival(
        at,
        traffic,
        service=draw(st.sampled_from([0.01, 0.25, 1.0, 4.0])),
        direct=draw(st.booleans()),
        gives_up=at + patience,
        session=draw(st.sampled_from([None, "a"])),
        blocks=draw(st.sampled_from([(), (b"1", b"2")])),
    )


faults = st.builds(
    FaultSpec,
    kind=st.sampled_from(FAULTS),
    replica=st.sampled_from(REPLICAS),
    at=moments(12),
    duration=moments(8).map(lambda duration: duration + 0.25),
    factor=st.sampled_from([0.5, 3.0, 10.0]),
    probability=st.sampled_from([0.5, 1.0]),
    capability=st.sampled_from([need.name for need in NEEDS]),
)
scenarios = st.builds(
    Scenario,
    name=st.just("searched"),
    groups=st.just(GROUPS),
    traffic=st.just(()),
    faults=st.lists(faults, max_size=6).map(tuple),
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


def test_the_search_finds_a_fault_of_the_product_and_shrinks_it_to_few_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Deadlines, "drop", lambda self, deadline: None)
    trace = find(
        traces,
        lambda trace: run(Scenario("searched", GROUPS, ()), "prefix", trace).broken > 0,
        settings=settings(QUICK, derandomize=True, phases=[Phase.generate, Phase.shrink]),
    )
    assert len(trace) <= 5
    assert any(arrival.traffic.deadline < math.inf for arrival in trace)
