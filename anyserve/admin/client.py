"""What the command line asks of admin sockets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio
from anyserve_actors.recording import Recording
from anyserve_protos.anyserve import v1 as pb

from anyserve.admin.socket_path import socket_path
from anyserve.errors import Internal, NotFound, Unavailable
from anyserve.transport.address import TcpAddress, parse_address
from anyserve.transport.channel import Channel
from anyserve.transport.trio_client import open_channel

_ADMIN = "/anyserve.v1.Admin"
_ANSWER_TIMEOUT = 5.0
"""Seconds for an answer that needs no work."""
_GATHER_TIMEOUT = 60.0
"""Seconds for the next piece of a trace, for which workers may have to be asked."""

_Result = TypeVar("_Result")


@asynccontextmanager
async def open_admin(text: str) -> AsyncIterator[Channel]:
    """A channel to the admin socket of whoever serves at an address, or to the socket itself.

    Raises `NotFound` where there is none, and `InvalidArgument` for what is no address.
    """
    address = parse_address(text)
    if isinstance(address, TcpAddress):
        path = socket_path(address.port)
        if not path.exists():
            raise NotFound(
                f"no replica or scheduler of this user serves on port {address.port} here"
            )
        text = f"unix:{path}"
    async with open_channel(text) as channel:
        yield channel


async def status(channel: Channel) -> pb.StatusReply:
    """Who it is; waits some seconds at most, raises what is answered and `Unavailable`."""
    return await _ask(channel, "Status", pb.StatusRequest(), pb.StatusReply)


async def tree(channel: Channel) -> pb.TreeReply:
    """Its actors; waits and raises as `status`."""
    return await _ask(channel, "Tree", pb.TreeRequest(), pb.TreeReply)


async def record(channel: Channel, seconds: float) -> list[Recording]:
    """Record a process and those that it has started, for a time.

    Waits for that and for the recordings, a minute at most for each piece. Cancelled, nobody
    records any more. Raises what is answered, and `Unavailable` where nothing is.
    """
    found: defaultdict[int, bytearray] = defaultdict(bytearray)
    path = f"{_ADMIN}/Trace"
    async with channel.stream(path, pb.TraceRequest, pb.TraceChunk) as call:
        await call.send(pb.TraceRequest(seconds=seconds), end=True)
        patience = seconds + _GATHER_TIMEOUT
        while (chunk := await _within(patience, channel, call.recv)) is not None:
            found[chunk.process] += chunk.recording
            patience = _GATHER_TIMEOUT
    try:
        return [Recording.from_bytes(bytes(data)) for data in found.values()]
    except ValueError as error:
        raise Internal(str(error)) from None


async def _ask(channel: Channel, method: str, request: Any, reply_type: type[_Result]) -> _Result:
    ask = partial(channel.unary, f"{_ADMIN}/{method}", request, reply_type)
    return await _within(_ANSWER_TIMEOUT, channel, ask)


async def _within(
    seconds: float, channel: Channel, ask: Callable[[], Awaitable[_Result]]
) -> _Result:
    with trio.move_on_after(seconds):
        return await ask()
    raise Unavailable(f"{channel.address} did not answer within {seconds:g} s")
