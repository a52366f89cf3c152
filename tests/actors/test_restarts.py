"""The pure rule of supervision, over many policies, groups and histories."""

from __future__ import annotations

from anyserve_actors.restarts import (
    Backoff,
    Decision,
    Ended,
    Escalate,
    Leave,
    Policy,
    Restart,
    RestartChildren,
    Sibling,
    Strategy,
    decide,
)
from hypothesis import assume, given
from hypothesis import strategies as st

types = st.sampled_from(Restart)
times = st.floats(0, 1000)
backoffs = st.builds(
    Backoff,
    initial=st.floats(0, 10),
    factor=st.floats(1, 1000),
    maximum=st.floats(0, 100),
    jitter=st.floats(0, 1),
)
groups = st.lists(types, min_size=1, max_size=6).map(
    lambda kinds: [Sibling(f"child-{index}", kind) for index, kind in enumerate(kinds)]
)
chances = st.floats(0, 1, exclude_max=True)
LENIENT = 1_000_000


def decided(
    group: list[Sibling],
    position: int,
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    *,
    failed: bool = True,
) -> Decision:
    ended = Ended(group[position].name, failed, uptime=0.0, streak=0)
    return decide(Policy(strategy, max_restarts=LENIENT), group, ended, (), 0.0, 0.5)


@given(group=groups, data=st.data(), failed=st.booleans(), strategy=st.sampled_from(Strategy))
def test_a_child_is_left_down_when_its_type_says_so(
    group: list[Sibling], data: st.DataObject, failed: bool, strategy: Strategy
) -> None:
    position = data.draw(st.integers(0, len(group) - 1))
    restart = group[position].restart
    decision = decided(group, position, strategy, failed=failed)
    stays_down = restart is Restart.TEMPORARY or (restart is Restart.TRANSIENT and not failed)
    assert isinstance(decision, Leave) == stays_down


@given(group=groups, data=st.data(), strategy=st.sampled_from(Strategy))
def test_a_strategy_stops_its_group_backwards_and_starts_it_forwards(
    group: list[Sibling], data: st.DataObject, strategy: Strategy
) -> None:
    position = data.draw(st.integers(0, len(group) - 1))
    assume(group[position].restart is not Restart.TEMPORARY)
    decision = decided(group, position, strategy)
    assert isinstance(decision, RestartChildren)
    first, last = {
        Strategy.ONE_FOR_ONE: (position, position + 1),
        Strategy.REST_FOR_ONE: (position, len(group)),
        Strategy.ONE_FOR_ALL: (0, len(group)),
    }[strategy]
    members = group[first:last]
    assert list(decision.stop) == [
        sibling.name for sibling in members[::-1] if sibling is not group[position]
    ]
    assert list(decision.start) == [
        sibling.name for sibling in members if sibling.restart is not Restart.TEMPORARY
    ]


@given(
    policy=st.builds(Policy, max_restarts=st.integers(0, 5), period=st.floats(0.1, 100)),
    recent=st.lists(times, max_size=10).map(sorted),
    wait=st.floats(0, 200),
)
def test_one_restart_more_than_the_intensity_allows_escalates(
    policy: Policy, recent: list[float], wait: float
) -> None:
    now = (recent[-1] if recent else 0.0) + wait
    group = [Sibling("only", Restart.PERMANENT)]
    ended = Ended("only", failed=True, uptime=0.0, streak=0)
    decision = decide(policy, group, ended, recent, now, 0.5)
    within = [time for time in recent if now - time <= policy.period]
    assert isinstance(decision, Escalate) == (len(within) + 1 > policy.max_restarts)
    if isinstance(decision, RestartChildren):
        assert list(decision.recent) == [*within, now]
        assert len(decision.recent) <= policy.max_restarts


@given(backoff=backoffs, streak=st.integers(0, 10_000), chance=chances)
def test_a_delay_stays_within_the_jitter_of_its_power_and_of_the_maximum(
    backoff: Backoff, streak: int, chance: float
) -> None:
    delay = backoff.delay(streak, chance)
    assert 0 <= delay <= backoff.maximum * (1 + backoff.jitter) * 1.000001
    plain = backoff.delay(streak, 0.5)
    assert plain * (1 - backoff.jitter) * 0.999999 <= delay
    assert delay <= plain * (1 + backoff.jitter) * 1.000001


@given(backoff=backoffs, streak=st.integers(0, 100))
def test_delays_never_shrink_as_restarts_follow_each_other(backoff: Backoff, streak: int) -> None:
    assert backoff.delay(streak, 0.5) <= backoff.delay(streak + 1, 0.5)


def test_delays_double_up_to_the_maximum() -> None:
    backoff = Backoff(initial=1.0, factor=2.0, maximum=5.0, jitter=0.0)
    assert [backoff.delay(streak, 0.3) for streak in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


@given(uptime=st.floats(0, 200), streak=st.integers(0, 50))
def test_a_child_that_stayed_up_for_the_period_starts_its_delays_anew(
    uptime: float, streak: int
) -> None:
    policy = Policy(period=60.0, backoff=Backoff(jitter=0.0))
    ended = Ended("only", failed=True, uptime=uptime, streak=streak)
    decision = decide(policy, [Sibling("only", Restart.PERMANENT)], ended, (), 1000.0, 0.5)
    assert isinstance(decision, RestartChildren)
    before = 0 if uptime >= 60.0 else streak
    assert decision.streak == before + 1
    assert decision.delay == policy.backoff.delay(before, 0.5)
