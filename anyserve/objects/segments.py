"""POSIX shared-memory segments: named after the replica they belong to, reserved, read, swept.

A name is `anyserve-<pid>-<start>-<n>-<k>`: the replica's process, its start time in clock ticks
since boot (a pid alone comes back), the n-th prefix that it handed out, and the k-th segment made
under that prefix. Segments that a worker makes carry its replica's name too, so that whatever a
dead replica left is found by name. Only the standard library is needed here.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import re
import sys
import types
from contextlib import suppress
from multiprocessing import shared_memory

DIRECTORY = "/dev/shm"
"""Where Linux keeps POSIX shared memory."""

RESERVED_PREFIX = "anyserve-"
"""Names that begin so are ours; no client's region may."""

_NAME = re.compile(r"anyserve-([0-9]+)-([0-9]+)-[0-9]+-[0-9]+")
_prefixes = itertools.count()


if sys.version_info < (3, 13):

    class _NoTracker:
        """Stands in for multiprocessing's resource tracker."""

        @staticmethod
        def register(name: str, rtype: str) -> None:
            """Nothing: a tracked segment is unlinked when the tracker's process ends."""

    # Python 3.13 has `track=False`. Before, SharedMemory's constructor always registers with the
    # resource tracker, and so starts a process for it. This is that constructor with its global
    # `resource_tracker` bound to ours: nothing is patched for anyone else in the process.
    _untracked_init = types.FunctionType(
        shared_memory.SharedMemory.__init__.__code__,
        {**vars(shared_memory), "resource_tracker": _NoTracker},
    )


class Segment(shared_memory.SharedMemory):
    """A segment that this process makes, writes and unlinks; others `attach` to it by name.

    Its pages cost memory only as far as `reserve` was called; a write past that could meet a full
    /dev/shm, which kills the process with SIGBUS.
    """

    _fd: int

    def __init__(self, name: str, size: int) -> None:
        """Makes the segment; OSError where that fails, FileExistsError where the name is taken."""
        if sys.version_info >= (3, 13):
            super().__init__(name, create=True, size=size, track=False)
        else:
            _untracked_init(self, name, create=True, size=size)
        self._reserved = 0
        # Held until this process ends, however it ends, and seen from every pid namespace: what
        # `sweep` can lock has no living owner.
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    @property
    def reserved(self) -> int:
        """Bytes from the start whose pages are there."""
        return self._reserved

    def reserve(self, end: int) -> None:
        """Makes the first `end` bytes safe to write; OSError (ENOSPC) where memory is out."""
        if end > self._reserved:
            if sys.platform == "linux":
                os.posix_fallocate(self._fd, self._reserved, end - self._reserved)
            self._reserved = end

    def view(self, offset: int, length: int) -> memoryview:
        """The writable bytes from `offset`, uint8 of shape [length]."""
        memory = self.buf
        assert memory is not None, "the segment is closed"
        return memory[offset : offset + length]

    def close(self) -> None:
        """Drops the mapping, now or with the last view of it; silent in either case."""
        try:
            super().close()
        except BufferError:
            # Someone's view is alive and keeps the mmap alive with it. The descriptor is ours.
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def unlink(self) -> None:
        """Removes the name; nothing happens where it is gone already."""
        unlink(self.name)


def new_prefix() -> str:
    """A prefix for one owner's segments, unique to this process and to this call."""
    pid = os.getpid()
    return f"{RESERVED_PREFIX}{pid}-{_start_of(pid) or 0}-{next(_prefixes)}"


def is_segment_name(name: str) -> bool:
    """Whether `name` is one that we give."""
    return _NAME.fullmatch(name) is not None


def open_shared(name: str, flags: int) -> int:
    """A descriptor of the shared-memory object `name`, which has no slashes; OSError."""
    return os.open(f"{DIRECTORY}/{name}", flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def attach(name: str) -> mmap.mmap:
    """The segment `name`, mapped so that the processor itself refuses writes; OSError."""
    fd = open_shared(name, os.O_RDONLY)
    try:
        return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


def exists(name: str) -> bool:
    """Whether the segment still has its name."""
    return os.path.exists(f"{DIRECTORY}/{name}")


def unlink(name: str) -> bool:
    """Removes a segment's name; whoever has it mapped keeps it. False where it was gone."""
    try:
        os.unlink(f"{DIRECTORY}/{name}")
    except FileNotFoundError:
        return False
    return True


def segments_of(prefix: str) -> list[str]:
    """The names of the segments made under `prefix` that still have one, sorted."""
    return [name for name in _names() if name.startswith(f"{prefix}-")]


def unlink_all(prefix: str) -> list[str]:
    """Removes what a dead owner left under `prefix`; returns the names."""
    return [name for name in segments_of(prefix) if unlink(name)]


def sweep() -> list[str]:
    """Removes the segments of dead replicas and returns their names; live ones' are left alone.

    Dead is a replica whose pid is free or belongs to a process that started at another time. Pids
    say nothing across containers that share /dev/shm, so the segment's lock must be free as well.
    Segments of other users, which cannot be judged, stay.
    """
    removed = []
    for name in _names():
        pid, start = map(int, name.split("-")[1:3])
        if _start_of(pid) == start:
            continue
        with suppress(OSError):
            fd = open_shared(name, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if unlink(name):
                    removed.append(name)
            finally:
                os.close(fd)
    return removed


def free_bytes() -> int:
    """Bytes that /dev/shm has left; OSError where there is no /dev/shm."""
    stats = os.statvfs(DIRECTORY)
    return stats.f_bavail * stats.f_frsize


def _names() -> list[str]:
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []


def _start_of(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None where none runs under `pid`."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field, a name in parentheses, may hold anything; count from its end.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    state, start = fields[0], int(fields[19])
    return None if state in (b"Z", b"X") else start
