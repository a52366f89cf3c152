"""A replica's link and the scheduler's service together, without sockets, on a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from anyserve_protos.anyserve import v1 as pb
from anyserve_scheduler.fleet import ReplicaState
from anyserve_scheduler.registration import LeaseTerms

from anyserve.errors import Aborted, AlreadyExists, PermissionDenied, Unavailable
from anyserve.replica.scheduler_link import LEAVE

LEASE, INTERVAL, SUSPICION = 10.0, 2.0, 2.5

Join = Callable[..., Any]


def reports(desk: Any) -> list[float]:
    """Makes the desk note when each report is sent."""
    times: list[float] = []

    def note(message: Any) -> bool:
        if isinstance(message, pb.FromReplica) and message.report is not None:
            times.append(trio.current_time())
        return False

    desk.loses = note
    return times


def view(desk: Any, id: str) -> Any:
    return desk.registry.fleet().replicas.get(id)


async def test_a_replica_that_joins_is_known_with_what_it_offers(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    join("a", "decode.heavy", "embedding")
    await trio.sleep(0.1)
    assert desk.names() == {"a": ["decode.heavy", "embedding"]}
    known = view(desk, "a")
    assert (known.state, known.address) == (ReplicaState.LIVE, "127.0.0.1:8001")
    assert known.offers["embedding"].load.slots == 4
    assert [found.id for found in desk.registry.fleet().offering("decode")] == ["a"]


async def test_load_is_reported_each_interval_however_often_it_changes(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    times = reports(desk)
    fake = join("a", "decode")
    for running in range(100):
        await trio.sleep(0.1)
        fake.offer("decode", running=running % 5)
    assert len(times) in (4, 5)
    assert all(b - a >= INTERVAL for a, b in pairwise(times))
    await trio.sleep(INTERVAL)
    assert view(desk, "a").offers["decode"].load.running == 4


async def test_a_replica_whose_load_does_not_change_is_heard_each_interval(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    times = reports(desk)
    join("a", "decode")
    await trio.sleep(20.5 * INTERVAL)
    assert len(times) == 20
    assert view(desk, "a").state is ReplicaState.LIVE


async def test_offers_that_appear_or_vanish_and_a_drain_are_told_at_once(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.1)
    fake.offer("decode", "embedding")
    await trio.sleep(0.01)
    assert desk.names() == {"a": ["decode", "embedding"]}
    fake.offer("embedding")
    await trio.sleep(0.01)
    assert desk.names() == {"a": ["embedding"]}
    fake.offer("embedding", draining=True)
    await trio.sleep(0.01)
    assert view(desk, "a").state is ReplicaState.DRAINING
    assert trio.current_time() < INTERVAL


async def test_a_replica_that_stops_says_goodbye(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.1)
    began = trio.current_time()
    fake.scope.cancel()
    await fake.ended.wait()
    assert desk.names() == {}
    assert trio.current_time() == began


async def test_a_replica_stops_within_a_second_though_its_scheduler_is_mute(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.1)
    desk.loses = lambda message: True
    began = trio.current_time()
    fake.scope.cancel()
    await fake.ended.wait()
    assert trio.current_time() - began <= 1.0


async def test_without_a_scheduler_a_replica_tries_again_and_again_and_less_often(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    desk.kill()
    fake = join("a", "decode")
    await trio.sleep(120)
    pauses = [b - a for a, b in pairwise(desk.attempts)]
    assert pauses[0] <= 0.3
    assert all(2.0 <= pause <= 6.0 for pause in pauses[5:])
    assert fake.link.channel is None
    assert "refused" in str(fake.link.details()["error"])
    desk.start()
    await trio.sleep(6.0)
    assert desk.names() == {"a": ["decode"]}
    assert fake.link.channel is not None


async def test_a_scheduler_that_starts_again_knows_its_fleet_within_a_lease(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fakes = [join(f"replica-{number}", "decode") for number in range(50)]
    await trio.sleep(1.0)
    old = [fake.link.epoch for fake in fakes]
    desk.kill()
    await trio.sleep(60)
    desk.start()
    await trio.sleep(LEASE)
    assert len(desk.names()) == 50
    assert all(fake.link.epoch > epoch for fake, epoch in zip(fakes, old, strict=True))


async def test_it_does_so_within_a_lease_that_is_short(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    desk.terms = LeaseTerms(lease=2.0, interval=0.4, grace=0.2)
    desk.start()
    fakes = [join(f"replica-{number}", "decode") for number in range(50)]
    await trio.sleep(1.0)
    desk.kill()
    await trio.sleep(60)
    desk.start()
    await trio.sleep(2.0)
    assert len(desk.names()) == len(fakes)


async def test_a_replica_whose_link_breaks_is_suspect_and_resumes_with_its_epoch(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.1)
    epoch = fake.link.epoch
    desk.calls[0].scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert view(desk, "a").state is ReplicaState.SUSPECT
    assert desk.links.get("a").last_error == "its link was lost"
    await trio.sleep(1.0)
    assert view(desk, "a").state is ReplicaState.LIVE
    assert (fake.link.epoch, view(desk, "a").epoch) == (epoch, epoch)
    assert len(desk.calls) == 2


async def test_a_silent_replica_is_suspect_after_an_interval_and_out_after_the_lease(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.0)
    await trio.testing.wait_all_tasks_blocked()
    epoch = fake.link.epoch
    desk.loses = lambda message: isinstance(message, pb.FromReplica)
    await trio.sleep(SUSPICION - 0.1)
    assert view(desk, "a").state is ReplicaState.LIVE
    await trio.sleep(0.2)
    assert view(desk, "a").state is ReplicaState.SUSPECT
    await trio.sleep(LEASE - SUSPICION)
    assert desk.names() == {}
    assert desk.links.get("a") is None
    desk.loses = lambda message: False
    await trio.sleep(LEASE)
    assert desk.names() == {"a": ["decode"]}
    assert fake.link.epoch > epoch


async def test_a_replica_gives_up_a_scheduler_that_falls_silent(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    fake = join("a", "decode")
    await trio.sleep(0.1)
    desk.loses = lambda message: isinstance(message, pb.ToReplica)
    await trio.sleep(LEASE)
    assert fake.link.channel is None
    assert "silent for 10 s" in str(fake.link.details()["error"])
    await trio.sleep(20)
    assert "silent for 5 s" in str(fake.link.details()["error"])
    desk.loses = lambda message: False
    await trio.sleep(LEASE)
    assert fake.link.channel is not None


async def test_reports_that_get_lost_are_made_good(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    chance = random.Random(5)
    fakes = [join(f"replica-{number}", "decode") for number in range(10)]
    await trio.sleep(0.1)
    desk.loses = lambda message: chance.random() < 0.2
    for number in range(40):
        for fake in fakes:
            fake.offer(*(f"c{digit}" for digit in range(8) if chance.random() < 0.5))
        await trio.sleep(0.3 + number % 3)
    desk.loses = lambda message: False
    await trio.sleep(2 * INTERVAL + LEASE)
    for fake in fakes:
        assert desk.names()[fake.id] == sorted(fake.standing.offers)
        assert view(desk, fake.id).state is ReplicaState.LIVE


async def test_another_process_gets_an_id_when_its_holder_is_out(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    first = join("a", "decode")
    await trio.sleep(0.1)
    second = join("a", "embedding")
    await trio.sleep(2 * LEASE)
    assert desk.names() == {"a": ["decode"]}
    assert "another process" in str(second.link.details()["error"])
    first.scope.cancel()
    await trio.sleep(6.0)
    assert desk.names() == {"a": ["embedding"]}


async def test_a_refused_registration_is_counted_with_its_reason(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    join("a", "decode")
    await trio.sleep(0.1)
    call = await attach(desk, register("a"))
    with pytest.raises(AlreadyExists):
        await call.recv()
    fleet = await look(desk)
    assert fleet.refused == 1
    assert fleet.last_refusal.startswith("'a': another process is replica a")


async def test_of_two_links_of_one_process_the_newer_counts(desk: Any, autojump_clock: Any) -> None:
    first = await attach(desk, register("a"))
    assert (await first.recv()).granted is not None
    second = await attach(desk, register("a"))
    granted = (await second.recv()).granted
    with pytest.raises(Aborted):
        await first.recv()
    await trio.testing.wait_all_tasks_blocked()
    assert view(desk, "a").state is ReplicaState.LIVE
    assert desk.links.verified("a", granted.epoch, TOKEN).replica_id == "a"


async def test_a_link_token_is_checked(desk: Any, autojump_clock: Any) -> None:
    call = await attach(desk, register("a"))
    epoch = (await call.recv()).granted.epoch
    for id, number, token in (
        ("a", epoch, bytes(32)),
        ("a", epoch + 1, TOKEN),
        ("b", epoch, TOKEN),
        ("a", epoch, b""),
    ):
        with pytest.raises(PermissionDenied):
            desk.links.verified(id, number, token)


async def test_only_a_replica_itself_can_say_its_goodbye(desk: Any, autojump_clock: Any) -> None:
    call = await attach(desk, register("a"))
    epoch = (await call.recv()).granted.epoch
    for token in (bytes(32), b"", TOKEN):
        leave = pb.LeaveRequest(replica_id="a", epoch=epoch, link_token=token)
        if token != TOKEN:
            with pytest.raises(PermissionDenied):
                await desk.unary(LEAVE, leave, pb.LeaveReply)
            assert desk.names() == {"a": []}
        else:
            await desk.unary(LEAVE, leave, pb.LeaveReply)
    assert desk.names() == {}
    with pytest.raises(Unavailable, match="the lease is over"):
        await call.recv()


async def test_a_replica_that_does_not_read_is_out_after_its_lease(
    desk: Any, autojump_clock: Any
) -> None:
    call = await attach(desk, register("a"))

    async def report() -> None:
        for sequence in range(1, 1000):
            await call.send(pb.FromReplica(report=pb.Report(sequence=sequence)))
            await trio.sleep(0.01)

    desk.nursery.start_soon(report)
    await trio.sleep(SUSPICION)
    assert view(desk, "a").state is ReplicaState.LIVE
    await call.ended.wait()
    assert LEASE < trio.current_time() < LEASE + 1.0
    assert desk.names() == {}


async def test_the_fleet_tells_of_links_and_errors(
    desk: Any, join: Join, autojump_clock: Any
) -> None:
    join("b", "decode")
    join("a", "embedding")
    await trio.sleep(0.1)
    desk.links.get("a").delegations += 3
    fleet = await look(desk)
    assert [replica.replica_id for replica in fleet.replicas] == ["a", "b"]
    a = fleet.replicas[0]
    assert (a.state, a.attached, a.delegations) == ("live", True, 3)
    assert [offer.name for offer in a.offers] == ["embedding"]
    assert 0 < a.silent_seconds <= 0.1


TOKEN = bytes(range(32))


def register(id: str) -> pb.Register:
    return pb.Register(
        replica_id=id, instance=b"instance", address="127.0.0.1:8001", link_token=TOKEN
    )


async def attach(desk: Any, message: pb.Register) -> Any:
    """A registration by hand; the call that carries it."""
    call = desk.call()
    await call.send(pb.FromReplica(register=message))
    return call


async def look(desk: Any) -> pb.FleetReply:
    """What the `Fleet` method answers."""
    reply = await desk.unary("/anyserve.v1.Scheduler/Fleet", pb.FleetRequest(), pb.FleetReply)
    assert isinstance(reply, pb.FleetReply)
    return reply
