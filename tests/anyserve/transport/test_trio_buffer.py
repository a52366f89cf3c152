"""All connections of a thread read into one buffer: what that spares, and that nothing is mixed."""

from __future__ import annotations

import tracemalloc
from contextlib import AsyncExitStack
from typing import Any

import trio

from anyserve.transport import trio_client
from anyserve.transport.rpc import MIB


async def test_an_idle_connection_takes_no_buffer_of_its_own(serving: Any) -> None:
    count = 20
    async with serving() as live, AsyncExitStack() as stack:

        async def connect() -> None:
            channel = await stack.enter_async_context(trio_client.open_channel(live.target))
            await channel.connect()

        await connect()
        tracemalloc.start()
        try:
            for _ in range(count):
                await connect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert live.server.statistics().connections == count + 1
        assert taken / count < 64 * 1024


async def test_connections_that_read_at_the_same_time_mix_nothing(serving: Any) -> None:
    async with serving() as live, trio.open_nursery() as nursery:

        async def echo(byte: int) -> None:
            message = bytes([byte]) * (3 * MIB)
            async with trio_client.open_channel(live.target) as channel:
                for _ in range(3):
                    assert await channel.unary("/test.Probe/Echo", message, bytes) == message

        for byte in range(8):
            nursery.start_soon(echo, byte)
