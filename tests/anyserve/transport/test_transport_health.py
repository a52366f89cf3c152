"""`grpc.health.v1` as probes use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
import grpc
import pytest
import trio
import trio.testing
from anyserve_protos.grpc.health.v1 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)

from anyserve.errors import InvalidArgument, NotFound
from anyserve.transport.address import TcpAddress
from anyserve.transport.health import HealthService, HealthState
from anyserve.transport.trio_client import Channel, open_channel
from anyserve.transport.trio_server import serve

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
Serving = HealthCheckResponseServingStatus


@attrs.define
class Health:
    state: HealthState
    channel: Channel
    target: str

    async def check(self, name: str) -> Serving:
        request = HealthCheckRequest(service=name)
        with trio.fail_after(5):
            return (await self.channel.unary(CHECK, request, HealthCheckResponse)).status


@pytest.fixture
async def health() -> AsyncIterator[Health]:
    state = HealthState()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve, [HealthService(state)], TcpAddress("127.0.0.1", 0))
        async with open_channel(server.address) as channel:
            yield Health(state, channel, str(server.address))
        nursery.cancel_scope.cancel()


async def test_check_tells_the_server_and_each_name_apart(health: Health):
    health.state.set("", True)
    health.state.set("decode", False)
    assert await health.check("") is Serving.SERVING
    assert await health.check("decode") is Serving.NOT_SERVING
    health.state.set("decode", True)
    assert await health.check("decode") is Serving.SERVING


async def test_check_of_an_unknown_name_is_not_found(health: Health):
    with pytest.raises(NotFound, match="'nothing'"):
        await health.check("nothing")


async def test_watch_tells_each_change_once(health: Health):
    health.state.set("decode", True)
    with trio.fail_after(5):
        async with health.channel.stream(WATCH, HealthCheckRequest, HealthCheckResponse) as watch:
            await watch.send(HealthCheckRequest(service="decode"), end=True)
            assert (await watch.recv()).status is Serving.SERVING
            health.state.set("decode", True)
            health.state.set("other", True)
            health.state.set("decode", False)
            assert (await watch.recv()).status is Serving.NOT_SERVING


async def test_watch_of_an_unknown_name_goes_on_until_it_is_known(health: Health):
    with trio.fail_after(5):
        async with health.channel.stream(WATCH, HealthCheckRequest, HealthCheckResponse) as watch:
            await watch.send(HealthCheckRequest(service="late"), end=True)
            assert (await watch.recv()).status is Serving.SERVICE_UNKNOWN
            health.state.set("late", True)
            assert (await watch.recv()).status is Serving.SERVING


async def test_a_malformed_request_is_invalid(health: Health):
    for malformed in (
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05ab",
        b"\x0a\x01\xff",
        b"\x0b",
    ):
        with pytest.raises(InvalidArgument, match="malformed HealthCheckRequest"):
            await health.channel.unary(CHECK, malformed, bytes)


async def test_grpcio_checks_and_watches(health: Health):
    health.state.set("", True)

    def work() -> list[Any]:
        encode, decode = HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        with grpc.insecure_channel(health.target) as channel:
            check = channel.unary_unary(CHECK, encode, decode)
            watch = channel.unary_stream(WATCH, encode, decode)(HealthCheckRequest())
            seen = [check(HealthCheckRequest()).status, next(watch).status]
            trio.from_thread.run_sync(health.state.set, "", False)
            seen.append(next(watch).status)
            watch.cancel()
            return seen

    with trio.fail_after(10):
        seen = await trio.to_thread.run_sync(work)
    assert seen == [Serving.SERVING, Serving.SERVING, Serving.NOT_SERVING]
