"""Sockets that listen on an address, or one line that says why not."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from anyserve.transport.address import Address, TcpAddress, UnixAddress

_BACKLOG = 1024


class CannotListen(OSError):
    """The address cannot be listened on; the message is one line that says why."""


@asynccontextmanager
async def listen(address: Address) -> AsyncIterator[tuple[list[trio.SocketListener], Address]]:
    """Listeners for each IP address of the host, and where they are; closed after the block.

    Waits for the host's name to be looked up. A Unix socket is unlinked after the block. Raises
    `CannotListen` for an address that is taken or not ours.
    """
    sockets: list[socket.socket] = []
    try:
        try:
            address = await _bind(address, sockets)
            for sock in sockets:
                sock.listen(_BACKLOG)
        except OSError as error:
            raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
        try:
            yield (
                [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets],
                address,
            )
        finally:
            if isinstance(address, UnixAddress):
                with suppress(FileNotFoundError):
                    os.unlink(address.path)
    finally:
        for sock in sockets:
            sock.close()


async def _bind(address: Address, sockets: list[socket.socket]) -> Address:
    """Add the bound sockets to `sockets`; one for each IP address, all on the same port."""
    if isinstance(address, UnixAddress):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[0].bind(address.path)
        os.chmod(address.path, 0o600)
        return address
    found = await trio.socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    port = address.port
    for family, _, _, _, place in found:
        sock = socket.socket(family)
        sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((place[0], port, *place[2:]))
        port = sock.getsockname()[1]
    return TcpAddress(address.host, port)
