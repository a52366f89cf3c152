"""Sockets as gRPC wants them, on either side: without delay, and kept alive."""

from __future__ import annotations

import socket

_IDLE_SECONDS = 60
_PROBE_SECONDS = 20


def prepare(sock: socket.socket) -> None:
    """Set a TCP socket's options; raises OSError for a peer that has gone again already."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer whose machine has vanished would hold its calls for ever.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)


def peer_name(sock: socket.socket) -> str:
    """Who is at the other end: `host:port`, or `unix`."""
    try:
        name = sock.getpeername()
    except OSError:
        # A peer that has gone again already.
        return "unknown"
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "unix"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
