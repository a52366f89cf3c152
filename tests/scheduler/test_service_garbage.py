"""The scheduler's service over real connections: what is wrong is refused in words, and counted."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from anyserve_protos.anyserve import v1 as pb
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig

from anyserve.errors import AnyServeError, Status
from anyserve.replica.scheduler_link import ATTACH
from anyserve.transport.channel import Channel
from anyserve.transport.trio_client import open_channel


@asynccontextmanager
async def scheduler_here(
    transport: str, **terms: float
) -> AsyncIterator[tuple[Scheduler, Channel]]:
    """A scheduler in this process, and a channel to it."""
    config = SchedulerConfig(port=0, transport=transport, terms=LeaseTerms(**terms))
    scheduler = Scheduler(config)
    with trio.fail_after(30):
        async with scheduler.running(), open_channel(scheduler.address) as channel:
            yield scheduler, channel


def register(**changes: Any) -> pb.Register:
    good: dict[str, Any] = {
        "replica_id": "a",
        "instance": b"instance",
        "address": "127.0.0.1:8001",
        "link_token": bytes(32),
    }
    return pb.Register(**{**good, **changes})


def offer(name: str = "decode", **changes: Any) -> pb.Offer:
    return pb.Offer(name=name, version="1", **changes)


async def refusal(channel: Channel, *messages: pb.FromReplica) -> AnyServeError:
    """How a link ends that says these."""
    async with channel.stream(ATTACH, pb.FromReplica, pb.ToReplica) as stream:
        try:
            for message in messages:
                await stream.send(message)
            async for _ in stream:
                pass
        except AnyServeError as error:
            return error
    raise AssertionError("the link ended well")


NAN = float("nan")
GARBAGE = {
    "no id": register(replica_id=""),
    "an id with a space": register(replica_id="a b"),
    "a long id": register(replica_id="a" * 300),
    "no instance": register(instance=b""),
    "no address": register(address=""),
    "an address without a port": register(address="host"),
    "port 0": register(address="host:0"),
    "no token": register(link_token=b""),
    "a long token": register(link_token=bytes(100)),
    "an offer without a name": register(offers=[pb.Offer()]),
    "a name that is none": register(offers=[offer("de code")]),
    "an offer twice": register(offers=[offer(), offer()]),
    "too many offers": register(offers=[offer(f"c{number}") for number in range(1025)]),
    "a load that is no number": register(
        offers=[offer(usage=pb.Load(slots=1, expected_wait_seconds=NAN))]
    ),
    "a negative wait": register(offers=[offer(usage=pb.Load(expected_wait_seconds=-1.0))]),
    "an attribute without a value": register(offers=[offer(attributes={"x": pb.Attribute()})]),
}


async def test_a_registration_that_can_not_be_is_refused_with_the_reason(transport: str) -> None:
    async with scheduler_here(transport) as (scheduler, channel):
        for what, message in GARBAGE.items():
            error = await refusal(channel, pb.FromReplica(register=message))
            assert error.status is Status.INVALID_ARGUMENT, what
            assert error.message, what
        assert len(scheduler.registry.fleet().replicas) == 0
        reply = await channel.unary(
            "/anyserve.v1.Scheduler/Fleet", pb.FleetRequest(), pb.FleetReply
        )
        assert reply.refused == len(GARBAGE)
        assert "attribute 'x' has no value" in reply.last_refusal


async def test_a_link_begins_with_a_registration_and_goes_on_with_reports(transport: str) -> None:
    async with scheduler_here(transport) as (scheduler, channel):
        for message in (
            pb.FromReplica(),
            pb.FromReplica(report=pb.Report(sequence=1)),
        ):
            error = await refusal(channel, message)
            assert error.status is Status.INVALID_ARGUMENT
        twice = pb.FromReplica(register=register())
        error = await refusal(channel, twice, twice)
        assert error.status is Status.INVALID_ARGUMENT
        link = scheduler.links.get("a")
        assert link is not None
        assert link.last_error == error.message


async def test_an_impossible_report_ends_the_link_and_changes_nothing(transport: str) -> None:
    async with scheduler_here(transport) as (scheduler, channel):
        report = pb.Report(
            sequence=1, loads=[pb.NamedLoad("decode", pb.Load(expected_wait_seconds=NAN))]
        )
        error = await refusal(
            channel,
            pb.FromReplica(register=register(offers=[offer()])),
            pb.FromReplica(report=report),
        )
        assert error.status is Status.INVALID_ARGUMENT
        assert "expected_wait" in error.message
        view = scheduler.registry.fleet().replicas["a"]
        assert (view.state, view.offers["decode"].load.running) == ("suspect", 0)


async def test_who_registers_nothing_is_sent_away_after_a_lease(transport: str) -> None:
    async with scheduler_here(transport, lease=0.3, interval=0.1, grace=0.1) as (_, channel):
        error = await refusal(channel)
    assert error.status is Status.DEADLINE_EXCEEDED
    assert "nothing was registered within 0.3 s" in error.message


async def test_random_bytes_for_messages_leave_the_scheduler_as_it_was(transport: str) -> None:
    chance = random.Random(7)
    good = bytes(pb.FromReplica(register=register(offers=[offer()])))
    ends: set[Status] = set()
    async with scheduler_here(transport) as (scheduler, channel):
        for _ in range(200):
            data = bytearray(good)
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            data = data[: chance.randrange(len(data) + 1)]
            async with channel.stream(ATTACH, bytes, bytes) as stream:
                try:
                    await stream.send(bytes(data), end=True)
                    async for _ in stream:
                        pass
                except AnyServeError as error:
                    ends.add(error.status)
        assert ends <= {
            *(Status.INVALID_ARGUMENT, Status.ALREADY_EXISTS, Status.FAILED_PRECONDITION)
        }
        async with channel.stream(ATTACH, pb.FromReplica, pb.ToReplica) as stream:
            await stream.send(pb.FromReplica(register=register(replica_id="fine")))
            reply = await stream.recv()
            assert reply is not None
            assert reply.granted is not None
            assert "fine" in scheduler.registry.fleet().replicas
