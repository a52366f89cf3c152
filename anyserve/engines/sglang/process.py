"""A server's process under its guard: started from the worker, heard, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

_GUARD = Path(__file__).with_name("guard.py")
STOP_TIME = 3.0
"""Seconds that the guard has to end the server: less than a worker has to unload its app."""
_MAX_LINE = 2000
_LAST = 40
"""Lines that are kept."""


@attrs.define(eq=False)
class ServerProcess:
    """A server that runs. Made by `start_server`."""

    _guard: subprocess.Popen[bytes]
    _output: trio.lowlevel.FdStream
    last: deque[str] = attrs.field(factory=lambda: deque(maxlen=_LAST))
    """What it said last."""
    _rest: bytes = b""

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._guard.pid

    async def read(self) -> list[str] | None:
        """Lines that the server has said since; None when it and all that it started have ended.

        Waits for it as long as it runs. It has to be read: a server whose output isn't read stops.
        """
        data = await self._output.receive_some()
        if not data:
            return None
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[-_MAX_LINE:]
        said = [line[:_MAX_LINE].decode(errors="replace").strip() for line in lines]
        self.last += said
        return said

    async def wait(self) -> str:
        """How it ended, in words; after the end of its output it has."""
        code = await trio.to_thread.run_sync(self._guard.wait)
        return f"killed by signal {code - 128}" if code > 128 else f"exit status {code}"

    def stop(self) -> None:
        """Have the guard end it; `read` tells when it has."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def reason(self) -> str:
        """The last line that says what went wrong, or the last one."""
        said = [line for line in self.last if line]
        wrong = [line for line in said if "Error" in line or "error:" in line]
        return (wrong or said or ["it said nothing"])[-1]


@asynccontextmanager
async def start_server(command: Sequence[str]) -> AsyncIterator[ServerProcess]:
    """Run `command` under a guard, for the time of the body.

    At the end the guard has `STOP_TIME` to end it with all that it has started, then the guard is
    killed, and the server with it. Raises `OSError` when the guard can't be started.
    """
    ours, theirs = os.pipe()
    try:
        guard = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            [sys.executable, "-I", str(_GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal to the worker's group is not for it
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    async with trio.lowlevel.FdStream(ours) as output:
        server = ServerProcess(guard, output)
        try:
            yield server
        finally:
            with trio.move_on_after(STOP_TIME, shield=True):
                server.stop()
                while await server.read() is not None:
                    pass
            with trio.CancelScope(shield=True):  # SIGKILL bounds it
                if guard.poll() is None:
                    guard.kill()
                await server.wait()
