"""Ports that nobody listens at. Only the standard library, since peers import it."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
