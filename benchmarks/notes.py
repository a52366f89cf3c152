"""When handlers were cancelled, told over a Unix datagram socket whose path the request names.

`time.monotonic_ns` is the same clock in all processes of a machine.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.errors import CannotMeasure

_TIMEOUT = 10.0


def note(path: str) -> None:
    """Tell whoever receives at `path` that it happens now."""
    now = time.monotonic_ns()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(str(now).encode(), path)


@attrs.frozen
class Notes:
    """Receives what `note` tells."""

    path: str
    _socket: socket.socket

    def next(self) -> int:
        """The time of the next note, by `time.monotonic_ns`; raises `CannotMeasure` if none."""
        try:
            return int(self._socket.recv(64))
        except TimeoutError as error:
            raise CannotMeasure(f"no handler was cancelled for {_TIMEOUT:.0f} s") from error


@contextmanager
def open_notes() -> Iterator[Notes]:
    """Somewhere to send notes to."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        path = str(Path(folder, "notes"))
        receiver.bind(path)
        receiver.settimeout(_TIMEOUT)
        yield Notes(path, receiver)
