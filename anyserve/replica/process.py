"""A worker's process: started from the main thread, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from anyserve.link.channel import FrameChannel

EXIT_TIMEOUT = 5.0
"""Seconds that a worker whose link has closed has to end before it is killed."""


class WorkerProcess:
    """A child that runs `python -m anyserve.worker`, and the link to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: FrameChannel) -> None:
        self._process = process
        self.channel = channel

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def kill(self) -> None:
        """End the child at once; no error when it is gone."""
        if self._process.poll() is None:
            self._process.kill()

    async def wait(self) -> str:
        """How the child ended, in words; waits until it has. The caller bounds the wait."""
        if self._process.poll() is None:
            await _wait_exit(self._process)
        return describe_exit(self._process.wait())


@asynccontextmanager
async def start_worker(python: str) -> AsyncIterator[WorkerProcess]:
    """Start a worker under the interpreter `python` for the time of the body.

    The child is started here, in the calling thread, because Linux sends its parent-death signal
    when the thread that started it ends. On the way out the child has `EXIT_TIMEOUT` seconds to
    end by itself, then it is killed. Raises `OSError` when the interpreter can't be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - in this thread on purpose
                [
                    *(python, "-m", "anyserve.worker"),
                    *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
    worker = WorkerProcess(process, FrameChannel(ours))
    try:
        yield worker
    finally:
        with trio.CancelScope(shield=True):
            await worker.channel.aclose()
            with trio.move_on_after(EXIT_TIMEOUT):
                await worker.wait()
            worker.kill()
            await worker.wait()


async def _wait_exit(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    else:
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)


def describe_exit(code: int) -> str:
    """A process's exit status in words."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"
