"""Keeps a server and all that it starts: `guard.py COMMAND...` ends them when its input ends.

A worker that is killed can't clean up, but its end of the guard's input closes all the same. Run
as a script by its path: it needs nothing but the standard library, and starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE = 1.0
"""Seconds that the server has between SIGTERM and SIGKILL."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


def main() -> int:
    """Run the command until it or the input ends; the command's exit status."""
    # Whatever the server starts, and the server loses, becomes a child of this process.
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_die_with_guard)
    ended = os.pidfd_open(server.pid)
    select.select([ended, sys.stdin], [], [])
    if server.poll() is None:
        server.terminate()
        select.select([ended], [], [], GRACE)
    _kill_descendants()
    return server.wait()


def _die_with_guard() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_descendants() -> None:
    """Kill everything below this process, again until nothing is left: they may start more."""
    while below := _descendants():
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # "pid (name) state parent ...", and the name may have anything in it
                state, parent = (
                    Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                )
                if state != "Z":
                    parents[int(entry)] = int(parent)
    below, todo = [], [os.getpid()]
    while todo:
        above = todo.pop()
        children = [pid for pid, parent in parents.items() if parent == above]
        below += children
        todo += children
    return below


if __name__ == "__main__":
    code = main()
    sys.exit(code if code >= 0 else 128 - code)
