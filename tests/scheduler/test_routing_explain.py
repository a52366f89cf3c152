from __future__ import annotations

import json
from random import Random

from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView
from anyserve_scheduler.routing import (
    POWER_OF_TWO,
    Decision,
    Hints,
    NoRoute,
    Policy,
    Router,
    Why,
)

from anyserve.capability import Capability
from anyserve.load import Load

DECODE = Capability("decode")
HEAVY = Capability("decode.heavy")
IDLE = Load(0, 0, 4, 0.0)
LIVE, SUSPECT, DRAINING = ReplicaState


def replica(
    id: str,
    load: Load,
    capability: Capability = DECODE,
    *,
    state: ReplicaState = LIVE,
    loadable: bool = False,
) -> ReplicaView:
    offer = OfferView(capability, load, 4, False, loadable)
    return ReplicaView(id, 1, f"{id}:1", state, {capability.name: offer}, 0.0)


def router(*replicas: ReplicaView, policy: Policy | None = None) -> Router:
    made = Router(policy or Policy(fresh=1e9), Random(3))
    made.follow(Fleet.of(replicas))
    return made


def test_every_candidate_has_the_reason_why_it_was_or_was_not_taken() -> None:
    fleet = router(
        replica("taken", Load(1, 0, 4, 0.0)),
        replica("busier", Load(2, 0, 4, 0.0)),
        replica("late", Load(4, 2, 4, 9.0)),
        replica("full", Load(4, 4, 4, 2.0)),
        replica("dead", Load(0, 0, 0, 0.0)),
        replica("back", IDLE),
        replica("strong", IDLE, HEAVY),
        replica("silent", IDLE, state=SUSPECT),
        replica("leaving", IDLE, state=DRAINING),
        replica("could", IDLE, loadable=True),
        replica("other", IDLE, Capability("rank")),
    )
    hints = Hints(budget=5.0, excluded={"back": "handed it back: its queue is full"})
    explanation = fleet.explain(DECODE, hints, 0.0)
    assert explanation.considered[0].replica == "taken"
    assert {each.replica: each.verdict for each in explanation.considered} == {
        "taken": "taken",
        "busier": "a longer wait, or a higher load",
        "late": "it would start after the deadline, in 5000 ms",
        "full": "its queue is full",
        "dead": "no worker is ready",
        "back": "excluded: handed it back: its queue is full",
        "strong": "more powerful than it has to be",
        "silent": "not heard of lately, and another can take it",
        "leaving": "draining",
        "could": "not loaded",
    }
    assert "decode goes to taken for decode: the least expected wait" in explanation.words()
    assert "full (decode): its queue is full; wait inf ms" in explanation.words()
    value = json.loads(json.dumps(explanation.to_json(), allow_nan=False))
    assert value["outcome"]["replica"] == "taken"
    assert value["outcome"]["reasons"] == ["the least expected wait"]
    assert len(value["considered"]) == 10


def test_scores_show_what_a_cached_prefix_was_worth() -> None:
    fleet = router(replica("a", Load(2, 0, 4, 0.0)), replica("b", Load(1, 0, 4, 0.0)))
    blocks = tuple(bytes([number] * 8) for number in range(4))
    fleet.blocks_stored(("a", "decode"), blocks[:3])
    explanation = fleet.explain(DECODE, Hints(blocks=blocks), 0.0)
    a, b = explanation.considered
    assert (a.replica, a.verdict, a.matched, a.relative_load) == ("a", "taken", 0.75, 0.75)
    assert (b.replica, b.verdict, b.matched, b.score) == ("b", "a lower score", 0.0, -0.5)
    assert "75% of the prompt cached" in explanation.words()


def test_a_refusal_is_explained_too() -> None:
    fleet = router(replica("a", Load(4, 0, 4, 3.0)))
    explanation = fleet.explain(DECODE, Hints(budget=1.0), 0.0)
    assert isinstance(explanation.outcome, NoRoute)
    assert [each.verdict for each in explanation.considered] == [
        "it would start after the deadline, in 1000 ms"
    ]
    assert "decode goes nowhere (RESOURCE_EXHAUSTED): 1000 ms remain" in explanation.words()
    nothing = fleet.explain(Capability("rank"), Hints(), 0.0)
    assert nothing.considered == ()
    assert nothing.to_json()["outcome"]["status"] == "NOT_FOUND"


def test_explaining_changes_no_later_decision() -> None:
    views = [replica(f"r{index}", Load(index % 4, 0, 4, 0.0)) for index in range(20)]
    asked, left_alone = (router(*views, policy=POWER_OF_TWO) for _ in range(2))
    for _ in range(20):
        explained = asked.explain(DECODE, Hints(), 0.0).outcome
        decision = asked.choose(DECODE, Hints(), 0.0)
        assert explained == decision == left_alone.choose(DECODE, Hints(), 0.0)


def test_the_explanation_of_a_large_fleet_is_short_and_has_the_one_taken() -> None:
    views = [replica(f"r{index}", IDLE) for index in range(300)]
    explanation = router(*views, policy=POWER_OF_TWO).explain(DECODE, Hints(), 0.0)
    outcome = explanation.outcome
    assert isinstance(outcome, Decision)
    assert outcome.reasons == (Why.TWO_CHOICES,)
    assert explanation.considered[0].replica == outcome.replica
    assert len({each.replica for each in explanation.considered}) == 32
    assert explanation.left_out == 268
    assert explanation.words().endswith("  and 268 more")
