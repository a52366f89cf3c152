"""Reads and writes of clients' regions that no client can turn into a crash.

Clients own these files and may truncate, unlink or replace them at any moment. `pread` and
`pwrite` answer that with a short count or an error, where a mapping would answer with SIGBUS.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import attrs

from anyserve.errors import Internal, InvalidArgument
from anyserve.objects.arena import Buffer, raw_bytes
from anyserve.objects.regions import RegionRef
from anyserve.objects.segments import open_shared


@attrs.define(eq=False)
class RegionFiles:
    """The files behind `RegionRef`s, opened by key as they are asked for, at most `limit` at once.

    Each use checks that the key still names the file that was registered, and how long it is.
    Not for use from several threads.
    """

    limit: int = 64
    _open: OrderedDict[str, int] = attrs.field(init=False, factory=OrderedDict)
    """Key to descriptor, the least recently used first."""

    def read(self, ref: RegionRef) -> bytes:
        """A copy of the region's bytes.

        Raises InvalidArgument where the client shrank, unlinked or replaced the region. Takes
        `ref.byte_size` bytes of memory: whoever made the ref has bounded it.
        """
        fd = self._checked(ref)
        parts: list[bytes] = []  # one, but for more than Linux reads at once, which is 2 GiB
        done = 0
        with _in_words(ref):
            while done < ref.byte_size:
                part = os.pread(fd, ref.byte_size - done, ref.offset + done)
                if not part:
                    raise _shrunk(ref, ref.offset + done)
                parts.append(part)
                done += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, ref: RegionRef, buffer: Buffer) -> None:
        """Puts the bytes of a buffer at the start of the region.

        Raises Internal where they are more than the region takes, or memory is out, and
        InvalidArgument where the client shrank, unlinked or replaced it. Part of them may have
        been written by then.
        """
        data = raw_bytes(buffer)
        if len(data) > ref.byte_size:
            raise Internal(
                f"shared memory region '{ref.name}': an output of {len(data)} bytes does not fit "
                f"the {ref.byte_size} bytes given for it"
            )
        # The check is what keeps the file from growing; a client that truncates it within these
        # few microseconds finds it grown again and harms only itself.
        fd = self._checked(ref)
        done = 0
        with _in_words(ref):
            while done < len(data):
                done += os.pwrite(fd, data[done:], ref.offset + done)

    def close(self) -> None:
        """Closes every file; they are opened again as they are needed."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _checked(self, ref: RegionRef) -> int:
        """A descriptor of the file that was registered, long enough for the ref just now."""
        fd = self._open.get(ref.key)
        if fd is None or not _is_registered(ref, os.fstat(fd)):
            fd = self._reopen(ref)
        self._open.move_to_end(ref.key)
        found = os.fstat(fd)
        if not _is_registered(ref, found):
            raise InvalidArgument(
                f"shared memory region '{ref.name}': key '{ref.key}' was replaced after the "
                "region was registered"
            )
        if found.st_size < ref.offset + ref.byte_size:
            raise _shrunk(ref, found.st_size)
        return fd

    def _reopen(self, ref: RegionRef) -> int:
        stale = self._open.pop(ref.key, None)
        if stale is not None:
            os.close(stale)
        elif len(self._open) >= self.limit:
            os.close(self._open.popitem(last=False)[1])
        try:
            fd = open_shared(ref.key, os.O_RDWR)
        except FileNotFoundError:
            raise InvalidArgument(
                f"shared memory region '{ref.name}': key '{ref.key}' was unlinked after the "
                "region was registered"
            ) from None
        except OSError as error:
            raise Internal(
                f"shared memory region '{ref.name}': key '{ref.key}' cannot be opened: "
                f"{error.strerror}"
            ) from error
        self._open[ref.key] = fd
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _is_registered(ref: RegionRef, found: os.stat_result) -> bool:
    """Whether this is the registered file, and still linked somewhere."""
    return (found.st_dev, found.st_ino) == (ref.device, ref.inode) and found.st_nlink > 0


def _shrunk(ref: RegionRef, size: int) -> InvalidArgument:
    return InvalidArgument(
        f"shared memory region '{ref.name}': key '{ref.key}' ends at {size} bytes, "
        f"{ref.offset + ref.byte_size} are needed; it was shrunk after the region was registered"
    )


@contextmanager
def _in_words(ref: RegionRef) -> Iterator[None]:
    """An error of the operating system, such as a full /dev/shm, as an Internal of the region."""
    try:
        yield
    except OSError as error:
        raise Internal(f"shared memory region '{ref.name}': {error.strerror}") from error
