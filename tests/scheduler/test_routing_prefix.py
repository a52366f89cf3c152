from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
from anyserve_scheduler.fleet import (
    Change,
    ChangeKind,
    Fleet,
    Load,
    OfferView,
    ReplicaState,
    ReplicaView,
)
from anyserve_scheduler.routing import (
    LEAST_WAIT,
    Decision,
    Hints,
    Policy,
    PrefixTable,
    Router,
    Why,
    block_hashes,
)
from anyserve_scheduler.routing.prefix import HASH_BYTES, PrefixStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from anyserve.capability import Capability

DECODE = Capability("decode")
A, B, C = ("a", "decode"), ("b", "decode"), ("c", "decode")
ALWAYS_FRESH = Policy(fresh=1e9)
SLOTS = 8


def replica(id: str, requests: int, *, epoch: int = 1) -> ReplicaView:
    running = min(requests, SLOTS)
    load = Load(running, requests - running, SLOTS, 0.0)
    offers = {"decode": OfferView(DECODE, load, 1_000, False)}
    return ReplicaView(id, epoch, f"{id}:1", ReplicaState.LIVE, offers, 0.0)


def router(*replicas: ReplicaView, policy: Policy = ALWAYS_FRESH) -> Router:
    made = Router(policy, Random(0))
    made.follow(Fleet.of(replicas))
    return made


def decide(router: Router, hints: Hints) -> Decision:
    found = router.choose(DECODE, hints, 0.0)
    assert isinstance(found, Decision), found
    return found


def blocks(count: int, branch: int = 0) -> tuple[bytes, ...]:
    return tuple(branch.to_bytes(4, "big") + number.to_bytes(4, "big") for number in range(count))


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(1, 40))
def test_prompts_share_hashes_exactly_as_far_as_they_share_blocks(
    one: bytes, other: bytes, block: int
) -> None:
    pairs = zip(block_hashes(one, block), block_hashes(other, block), strict=False)
    same = [a == b for a, b in pairs]
    assert same == [one[: (at + 1) * block] == other[: (at + 1) * block] for at in range(len(same))]
    assert len(block_hashes(one, block)) == len(one) // block


def test_a_block_has_another_hash_behind_another_beginning() -> None:
    assert block_hashes(b"aaaabbbb", 4)[1] != block_hashes(b"ccccbbbb", 4)[1]


def test_hashes_are_the_same_in_every_process_and_of_every_kind_of_buffer() -> None:
    hashes = block_hashes(b"abcdefgh", 4)
    assert [each.hex() for each in hashes] == ["f021be6e492f0427", "97750dbb849862c0"]
    assert block_hashes(memoryview(b"abcdefgh").cast("I"), 4) == hashes
    assert {len(each) for each in hashes} == {HASH_BYTES}


def test_a_prompt_of_any_length_has_no_more_hashes_than_the_limit() -> None:
    assert len(block_hashes(bytes(100_000), 4, limit=50)) == 50
    assert len(block_hashes(bytes(16 << 20))) == 1024


def test_a_match_counts_from_the_first_block_and_ends_at_the_first_gap() -> None:
    table = PrefixTable()
    prompt = blocks(6)
    table.stored(A, prompt[:4])
    table.stored(B, prompt)
    assert dict(table.matches(prompt)) == {A: 4, B: 6}
    table.evicted(B, [prompt[2]])
    assert dict(table.matches(prompt)) == {A: 4, B: 2}
    table.evicted(A, [prompt[0]])
    assert dict(table.matches(prompt)) == {B: 2}
    assert table.matches(blocks(3, branch=1)) == []
    assert table.matches(()) == []


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    table = PrefixTable(share=6)
    old, new = blocks(4), blocks(4, branch=1)
    table.stored(A, old)
    table.stored(A, new)
    assert table.matches(old) == [(A, 2)]
    assert table.matches(new) == [(A, 4)]


def test_a_prompt_that_is_used_again_stays() -> None:
    table = PrefixTable(share=6)
    used, unused = blocks(3), blocks(3, branch=1)
    table.stored(A, used)
    table.stored(A, unused)
    table.stored(A, used)
    table.stored(A, blocks(3, branch=2))
    assert table.matches(used) == [(A, 3)]
    assert table.matches(unused) == []


def test_one_offer_fills_no_more_than_its_share() -> None:
    table = PrefixTable(entries=100, share=10)
    table.stored(A, blocks(5))
    for branch in range(1, 100):
        table.stored(B, blocks(3, branch))
    table.stored(B, blocks(1_000, branch=100))
    assert table.matches(blocks(5)) == [(A, 5)]
    assert table.statistics().entries == 15
    assert dict(table.matches(blocks(1_000, branch=100))) == {B: 10}


def test_a_full_table_takes_from_whoever_was_quiet_for_longest() -> None:
    table = PrefixTable(entries=10, share=10)
    for branch, key in enumerate([A, B, C]):
        table.stored(key, blocks(4, branch))
    found = [table.matches(blocks(4, branch)) for branch in range(3)]
    assert found == [[(A, 2)], [(B, 4)], [(C, 4)]]


def test_a_beginning_that_all_have_is_kept_for_few() -> None:
    table = PrefixTable()
    for index in range(100):
        table.stored((f"r{index}", "decode"), blocks(3))
    assert [key[0] for key, _ in table.matches(blocks(3))] == [f"r{n}" for n in range(99, 91, -1)]
    assert table.statistics().entries == 24


actions = st.lists(
    st.tuples(
        st.sampled_from(["stored", "evicted", "forget"]),
        st.integers(0, 11).map(lambda number: (f"r{number}", "decode")),
        st.integers(0, 2),
        st.integers(0, 6),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(actions, st.integers(1, 30), st.integers(1, 12))
def test_a_table_keeps_its_bounds_and_claims_nothing_that_was_not_stored(
    actions: list[tuple[str, tuple[str, str], int, int]], entries: int, share: int
) -> None:
    table = PrefixTable(entries, share)
    held: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
    for action, key, branch, count in actions:
        if action == "stored":
            table.stored(key, blocks(count, branch))
            held[key].update(blocks(count, branch))
        elif action == "evicted":
            table.evicted(key, blocks(count, branch)[1::2])
            held[key].difference_update(blocks(count, branch)[1::2])
        else:
            table.forget(key)
            held[key].clear()
        for branch in range(3):
            matches = table.matches(blocks(6, branch))
            assert len({holder for holder, _ in matches}) == len(matches) <= 8
            for holder, depth in matches:
                assert held[holder].issuperset(blocks(depth, branch))
        statistics = table.statistics()
        assert statistics.entries <= entries
        assert statistics.blocks <= statistics.entries
        assert statistics.offers <= statistics.entries <= statistics.offers * share
    for key in list(held):
        table.forget(key)
    assert table.statistics() == PrefixStatistics(0, 0, 0)


def test_a_prompt_goes_where_its_beginning_went() -> None:
    fleet = router(replica("a", 0), replica("b", 0), replica("c", 0))
    first = Hints(blocks=blocks(10))
    where = decide(fleet, first)
    fleet.ended(fleet.sent(DECODE, first, where, 0.0), 0.0, served=True)
    longer = decide(fleet, Hints(blocks=blocks(12)))
    assert longer.replica == where.replica
    assert longer.reasons == (Why.PREFIX,)
    assert decide(fleet, Hints(blocks=blocks(12, branch=1))).replica != where.replica


def test_a_policy_without_prefixes_learns_and_follows_none() -> None:
    fleet = router(replica("a", 1), replica("b", 0), policy=LEAST_WAIT)
    fleet.blocks_stored(A, blocks(10))
    assert decide(fleet, Hints(blocks=blocks(10))).replica == "b"


@settings(deadline=None)
@given(
    blocks_of_prompt=st.integers(2, 200),
    cached=st.integers(0, 200),
    hot=st.integers(0, 80),
    others=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    weight=st.sampled_from([0.25, 1.0, 3.0]),
)
def test_cached_blocks_count_for_no_more_load_than_their_fraction_of_the_prompt(
    blocks_of_prompt: int, cached: int, hot: int, others: list[int], weight: float
) -> None:
    cached = min(cached, blocks_of_prompt)
    views = [replica(f"r{index}", requests) for index, requests in enumerate(others)]
    fleet = router(replica("hot", hot), *views, policy=Policy(fresh=1e9, load_weight=weight))
    fleet.blocks_stored(("hot", "decode"), blocks(cached))
    mean = (hot + sum(others)) / (SLOTS * (1 + len(others)))
    excess = (hot - min(others)) / SLOTS / max(mean, 1.0)
    gain = cached / blocks_of_prompt - weight * excess
    where = decide(fleet, Hints(blocks=blocks(blocks_of_prompt))).replica
    if gain < -1e-9:
        assert where != "hot"
    elif gain > 1e-9:
        assert where == "hot"


@given(st.integers(10, 1000), st.integers(1, 20))
def test_one_cached_block_never_pins_requests_to_a_hot_replica(count: int, others: int) -> None:
    fleet = router(replica("hot", SLOTS), *(replica(f"r{each}", 4) for each in range(others)))
    fleet.blocks_stored(("hot", "decode"), blocks(1))
    assert decide(fleet, Hints(blocks=blocks(count))).replica != "hot"


def test_even_a_whole_prompt_does_not_wait_on_a_full_replica_of_an_idle_fleet() -> None:
    fleet = router(replica("full", SLOTS), replica("idle", 0))
    fleet.blocks_stored(("full", "decode"), blocks(100))
    assert decide(fleet, Hints(blocks=blocks(100))).replica == "idle"


def test_a_stream_of_equal_prompts_spreads_before_it_overloads_one_replica() -> None:
    fleet = router(*(replica(f"r{index}", 0) for index in range(4)))
    hints = Hints(blocks=blocks(20))
    for _ in range(4 * SLOTS):
        fleet.sent(DECODE, hints, decide(fleet, hints), 0.0)
    rows = fleet.explain(DECODE, hints, 0.0).considered
    assert max(row.relative_load for row in rows) <= 1.5


def test_a_cached_prefix_does_not_outweigh_the_deadline() -> None:
    late = ReplicaView(
        "late",
        1,
        "late:1",
        ReplicaState.LIVE,
        {"decode": OfferView(DECODE, Load(8, 0, 8, 5.0), 9, False)},
        0.0,
    )
    fleet = router(late, replica("soon", 8))
    fleet.blocks_stored(("late", "decode"), blocks(10))
    assert decide(fleet, Hints(blocks=blocks(10))).replica == "late"
    assert decide(fleet, Hints(budget=1.0, blocks=blocks(10))).replica == "soon"
    excluded = Hints(excluded={"late": "handed it back"}, blocks=blocks(10))
    assert decide(fleet, excluded).replica == "soon"


@pytest.mark.parametrize("gone", ["left", "left and missed", "restarted", "evicted"])
def test_a_cache_that_is_gone_draws_nothing(gone: str) -> None:
    # One request more than its neighbour: only its cache speaks for it.
    views = replica("a", 1), replica("b", 0)
    fleet = router(*views)
    fleet.blocks_stored(A, blocks(4))
    assert decide(fleet, Hints(blocks=blocks(4))).replica == "a"
    if gone == "left":
        fleet.follow([Change(3, ChangeKind.LEFT, "a", None)])
        fleet.follow([Change(4, ChangeKind.JOINED, "a", views[0])])
    elif gone == "left and missed":
        fleet.follow(Fleet.of(views[1:]))
        fleet.follow(Fleet.of(views))
    elif gone == "restarted":
        fleet.follow(Fleet.of([replica("a", 1, epoch=2), views[1]]))
    else:
        fleet.blocks_evicted(A, blocks(4))
    assert decide(fleet, Hints(blocks=blocks(4))).replica == "b"


def test_blocks_of_a_stranger_are_not_kept() -> None:
    fleet = router(replica("a", 0))
    fleet.blocks_stored(("stranger", "decode"), blocks(4))
    fleet.follow(Fleet.of([replica("a", 0), replica("stranger", 1)]))
    assert decide(fleet, Hints(blocks=blocks(4))).replica == "a"
