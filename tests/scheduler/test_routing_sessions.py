from __future__ import annotations

from random import Random

import pytest
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView
from anyserve_scheduler.routing import LEAST_WAIT, Decision, Hints, Router, Sessions, Why

from anyserve.capability import Capability
from anyserve.load import Load

DECODE = Capability("decode")
MINE = Hints(session="mine")


def replica(
    id: str, running: int, *, epoch: int = 1, state: ReplicaState = ReplicaState.LIVE
) -> ReplicaView:
    load = Load(min(running, 4), max(running - 4, 0), 4, 0.5 if running >= 4 else 0.0)
    return ReplicaView(
        id, epoch, f"{id}:1", state, {"decode": OfferView(DECODE, load, 20, False)}, 0.0
    )


def decide(router: Router, hints: Hints = MINE, now: float = 0.0) -> Decision:
    found = router.choose(DECODE, hints, now)
    assert isinstance(found, Decision), found
    return found


@pytest.fixture
def at_a() -> Router:
    """Two replicas, and a session whose first request went to `a` and is over."""
    router = Router(LEAST_WAIT, Random(0), sessions=Sessions(limit=3, idle=60.0))
    router.follow(Fleet.of([replica("a", 0), replica("b", 1)]))
    router.ended(router.sent(DECODE, MINE, decide(router), 0.0), 0.0, served=True)
    router.follow(Fleet.of([replica("a", 2), replica("b", 0)]))
    return router


def test_a_session_stays_where_it_is_though_another_is_idle(at_a: Router) -> None:
    assert decide(at_a).reasons == (Why.SESSION,)
    assert decide(at_a).replica == "a"
    assert decide(at_a, Hints()).replica == "b"
    assert decide(at_a, Hints(session="other")).replica == "b"


def test_a_session_is_over_when_it_is_silent(at_a: Router) -> None:
    assert decide(at_a, now=60.0).replica == "a"
    assert decide(at_a, now=60.1).replica == "b"


def test_each_request_of_a_session_lets_it_last_longer(at_a: Router) -> None:
    at_a.sent(DECODE, MINE, decide(at_a, now=50.0), 50.0)
    assert decide(at_a, now=100.0).replica == "a"


@pytest.mark.parametrize(
    "now_there",
    [
        [replica("b", 0)],
        [replica("a", 2, epoch=2), replica("b", 0)],
        [replica("a", 2, state=ReplicaState.DRAINING), replica("b", 0)],
        [replica("a", 2, state=ReplicaState.SUSPECT), replica("b", 0)],
        [replica("a", 8), replica("b", 0)],
    ],
    ids=["left", "restarted", "draining", "suspect", "over its load"],
)
def test_a_session_moves_when_its_replica_can_keep_it_no_more(
    at_a: Router, now_there: list[ReplicaView]
) -> None:
    at_a.follow(Fleet.of(now_there))
    moved = decide(at_a)
    assert moved.replica == "b"
    at_a.sent(DECODE, MINE, moved, 1.0)
    assert decide(at_a, now=1.0).reasons == (Why.SESSION,)


def test_a_session_stays_on_a_busy_replica_of_a_busy_fleet(at_a: Router) -> None:
    at_a.follow(Fleet.of([replica("a", 9), replica("b", 8)]))
    assert decide(at_a).replica == "a"


def test_a_session_leaves_a_replica_that_is_excluded_or_too_late(at_a: Router) -> None:
    assert decide(at_a, Hints(session="mine", excluded={"a": "no"})).replica == "b"
    at_a.follow(Fleet.of([replica("a", 4), replica("b", 0)]))
    assert decide(at_a).replica == "a"
    assert decide(at_a, Hints(session="mine", budget=0.4)).replica == "b"


def test_the_same_key_for_another_capability_is_another_session() -> None:
    sessions = Sessions()
    sessions.moved("decode", "s", ("a", "decode"), 1, 0.0)
    assert sessions.place("rank", "s", 0.0) is None


def test_sessions_are_bounded_by_number_and_silence() -> None:
    sessions = Sessions(limit=3, idle=10.0)
    for number in range(5):
        sessions.moved("decode", f"s{number}", ("a", "decode"), 1, float(number))
    assert len(sessions) == 3
    assert sessions.place("decode", "s1", 5.0) is None
    assert sessions.place("decode", "s2", 5.0) is not None
    sessions.moved("decode", "new", ("a", "decode"), 1, 13.5)
    assert len(sessions) == 2
