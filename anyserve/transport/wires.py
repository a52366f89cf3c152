"""What carries the calls of a server, by its name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from anyserve.transport import trio_server

Serve: TypeAlias = Callable[..., Awaitable[None]]
"""A `serve` as that of `trio_server`."""

WIRES = ("trio", "grpclib")
"""Trio's own sockets, and the reference."""


@asynccontextmanager
async def open_wire(name: str) -> AsyncIterator[Serve]:
    """The wire's `serve`, to be called in the block."""
    if name == "trio":
        yield trio_server.serve
        return
    # asyncio and all that comes with it, in memory and in time, for those alone who ask for it.
    from anyserve_actors.asyncio_bridge import open_bridge

    from anyserve.transport import grpclib_server

    async with open_bridge() as bridge:
        yield partial(grpclib_server.serve, bridge=bridge)
