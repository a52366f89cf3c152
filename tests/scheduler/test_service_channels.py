"""The scheduler's channels to its replicas: one each, opened when wanted, closed with the lease."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from anyserve_actors import ChildSpec, Supervisor, Tree
from anyserve_protos.grpc.health import v1 as health_pb
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.registration import Registration
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.watched import WatchedRegistry

from anyserve.errors import Unavailable
from anyserve.transport.address import TcpAddress
from anyserve.transport.channel import Channel
from anyserve.transport.health import HealthService, HealthState
from anyserve.transport.rpc import Limits
from anyserve.transport.trio_server import serve


def registration(address: str, instance: bytes = b"one") -> Registration:
    return Registration(id="a", instance=instance, address=address, offers=())


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[WatchedRegistry, Channels]]:
    registry = WatchedRegistry(MemoryRegistry())
    channels = Channels(registry, Limits())
    with trio.fail_after(20):
        async with Tree("root", Supervisor([ChildSpec("c", lambda: channels)])).running():
            yield registry, channels


@asynccontextmanager
async def replica() -> AsyncIterator[str]:
    """A server that answers Check; its address."""
    state = HealthState()
    state.set("", True)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(serve, [HealthService(state)], TcpAddress("127.0.0.1", 0))
        )
        yield str(server.address)
        nursery.cancel_scope.cancel()


async def check(channel: Channel) -> None:
    request = health_pb.HealthCheckRequest()
    reply = await channel.unary(
        "/grpc.health.v1.Health/Check", request, health_pb.HealthCheckResponse
    )
    assert reply.status == health_pb.HealthCheckResponseServingStatus.SERVING


async def test_all_who_want_a_replica_share_one_channel() -> None:
    async with replica() as address, opened() as (registry, channels):
        registry.register(registration(address), trio.current_time())
        view = registry.fleet().replicas["a"]
        assert channels.get(view) is None
        found: list[Channel] = []

        async def want() -> None:
            found.append(await channels.open(view))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(want)
        assert len(set(map(id, found))) == 1
        assert channels.get(view) is found[0]
        await check(found[0])


async def test_a_channel_connects_no_sooner_than_it_is_used() -> None:
    async with opened() as (registry, channels):
        registry.register(registration("127.0.0.1:1"), trio.current_time())
        channel = await channels.open(registry.fleet().replicas["a"])
        with pytest.raises(Unavailable, match="cannot connect"):
            await check(channel)


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "silence"])
async def test_a_channel_closes_when_its_replica_is_out(
    goodbye: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyserve_scheduler.channels.GOODBYE", 0.5)
    async with replica() as address, opened() as (registry, channels):
        epoch = registry.register(registration(address), trio.current_time()).epoch
        view = registry.fleet().replicas["a"]
        channel = await channels.open(view)
        request = health_pb.HealthCheckRequest()
        path = "/grpc.health.v1.Health/Watch"
        reply_type = health_pb.HealthCheckResponse
        async with channel.stream(path, health_pb.HealthCheckRequest, reply_type) as stream:
            await stream.send(request, end=True)
            assert await stream.recv() is not None
            ended = trio.current_time()
            if goodbye:
                registry.release("a", epoch)
            else:
                for step in range(100):
                    registry.expire(ended + step / 4)
            assert channels.get(view) is None
            with pytest.raises(Unavailable):
                await stream.recv()
            assert (trio.current_time() - ended >= 0.5) is goodbye
        with pytest.raises(Unavailable, match="replica a is gone"):
            await channels.open(view)
        assert channels.details() == {"channels": 0}


async def test_a_replica_that_has_moved_gets_a_new_channel() -> None:
    async with replica() as first, replica() as second, opened() as (registry, channels):
        registry.register(registration(first), trio.current_time())
        old = await channels.open(registry.fleet().replicas["a"])
        registry.register(registration(second), trio.current_time())
        view = registry.fleet().replicas["a"]
        assert channels.get(view) is None
        new = await channels.open(view)
        assert str(new.address) == second
        assert new is not old
        await check(new)
        assert channels.details() == {"channels": 1}


async def test_the_next_holder_of_an_id_gets_a_channel_of_its_own() -> None:
    async with replica() as address, opened() as (registry, channels):
        epoch = registry.register(registration(address), trio.current_time()).epoch
        old = await channels.open(registry.fleet().replicas["a"])
        registry.release("a", epoch)
        registry.register(registration(address, b"two"), trio.current_time())
        new = await channels.open(registry.fleet().replicas["a"])
        assert new is not old
        await check(new)
