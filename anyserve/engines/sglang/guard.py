"""Keeps a server and all that it starts: `guard.py COMMAND...` ends them when its input ends.

It removes their segments of shared memory with SGLang's load, too: SGLang never does, and a
container has little of it.

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
TRACKER_TIME = 0.5
"""Seconds that Python's resource trackers then have to remove what others have left."""
_TRACKER = b"multiprocessing.resource_tracker"
_SHARED_MEMORY = "/dev/shm"
_LOADS = "sglang_loads_"
"""What the segments with SGLang's load begin with; the rest is random."""
_IN_CREATE = 0x100
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


def main() -> int:
    """Run the command until it or the input ends; the command's exit status."""
    # Whatever the server starts, and the server loses, becomes a child of this process.
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    created = _watched_memory()
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=_die_with_guard)
    ended = os.pidfd_open(server.pid)
    segments: set[str] = set()
    while select.select([ended, sys.stdin, *created], [], [])[0] == created:
        if _LOADS.encode() in os.read(created[0], 65536):
            segments |= _segments()
    segments |= _segments()
    if server.poll() is None:
        server.terminate()
        select.select([ended], [], [], GRACE)
    _kill_descendants()
    for path in segments:
        with suppress(OSError):
            os.unlink(path)
    return server.wait()


def _die_with_guard() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watched_memory() -> list[int]:
    """A descriptor that is readable when a segment has been created; none if it can't be had."""
    descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return []
    if _LIBC.inotify_add_watch(descriptor, _SHARED_MEMORY.encode(), _IN_CREATE) < 0:
        os.close(descriptor)
        return []
    return [descriptor]


def _segments() -> set[str]:
    """The paths of segments that processes below this one have open: theirs, by random names."""
    found = set()
    for pid in _descendants():
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    found.add(os.readlink(descriptor))
    return {path for path in found if path.startswith(f"{_SHARED_MEMORY}/{_LOADS}")}


def _kill_descendants() -> None:
    """Kill everything below this process, again until nothing is left: they may start more.

    Resource trackers come last, which end by themselves when those that they work for have.
    """
    patience = time.monotonic() + TRACKER_TIME
    while below := _descendants():
        for pid in below:
            with suppress(OSError):
                if time.monotonic() > patience or not _tracks(pid):
                    os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _tracks(pid: int) -> bool:
    return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()


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
