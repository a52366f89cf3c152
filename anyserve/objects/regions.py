"""Clients' shared-memory regions (Triton's system shared memory): who registered what, and where.

The registry belongs to the replica. It hands out `RegionRef`s, plain values that a worker's
`RegionFiles` turns into reads and writes. Nothing here maps a client's memory: a client that
truncates its file would kill whoever touched the mapping.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import attrs

from anyserve.errors import AlreadyExists, Internal, InvalidArgument, NotFound, ResourceExhausted
from anyserve.objects.segments import RESERVED_PREFIX, open_shared

MAX_NAME = 255
"""Bytes of a region's name, and of a file's."""

_RESERVED = (RESERVED_PREFIX, "sem.")
"""Our own segments, and the C library's named semaphores, which lie in the same folder."""


@attrs.frozen
class RegionRef:
    """A registered region, or a part of one; for any process of this machine."""

    name: str
    """As registered; what error messages say."""
    key: str
    """Name of the shared-memory object, without slashes."""
    device: int
    inode: int
    """With the device, which file had the key when it was registered."""
    offset: int
    """Bytes from the start of the shared-memory object."""
    byte_size: int

    def part(self, offset: int, byte_size: int) -> RegionRef:
        """`byte_size` bytes from `offset` of this one; InvalidArgument where it has not as many."""
        if offset < 0 or byte_size < 0 or offset + byte_size > self.byte_size:
            raise InvalidArgument(
                f"shared memory region '{self.name}': {byte_size} bytes at offset {offset} are "
                f"outside its {self.byte_size} bytes"
            )
        return attrs.evolve(self, offset=self.offset + offset, byte_size=byte_size)


@attrs.frozen
class RegionStatus:
    """A region as its client registered it."""

    name: str
    key: str
    offset: int
    byte_size: int


@attrs.frozen
class _Region:
    status: RegionStatus
    ref: RegionRef
    fd: int
    """Keeps the inode number from being given to another file."""


@attrs.define(eq=False)
class Regions:
    """The regions registered with one replica, at most `limit`, each holding a descriptor."""

    limit: int = 512
    _regions: dict[str, _Region] = attrs.field(init=False, factory=dict)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Takes up `byte_size` bytes at `offset` of the shared-memory object `key`.

        Raises InvalidArgument for a name or key that cannot be one, AlreadyExists for a name in
        use, Internal where there is no such object or it is not that large, and
        ResourceExhausted past the limit.
        """
        _check_name(name)
        file_name = _file_name(name, key)
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' is registered already")
        if len(self._regions) >= self.limit:
            raise ResourceExhausted(f"{self.limit} shared memory regions are registered already")
        try:
            fd = open_shared(file_name, os.O_RDWR)
        except OSError as error:
            raise Internal(
                f"shared memory region '{name}': key '{key}' cannot be opened: {error.strerror}"
            ) from error
        try:
            found = os.fstat(fd)
            _check_extent(name, key, found, offset, byte_size)
        except BaseException:
            os.close(fd)
            raise
        self._regions[name] = _Region(
            RegionStatus(name, key, offset, byte_size),
            RegionRef(name, file_name, found.st_dev, found.st_ino, offset, byte_size),
            fd,
        )

    def unregister(self, name: str) -> None:
        """Forgets a region; nothing happens where there is none of that name."""
        region = self._regions.pop(name, None)
        if region is not None:
            os.close(region.fd)

    def unregister_all(self) -> None:
        """Forgets every region."""
        for name in list(self._regions):
            self.unregister(name)

    def status(self, name: str = "") -> list[RegionStatus]:
        """What is registered under `name`, or all for an empty one; NotFound for an unknown one."""
        if not name:
            return [region.status for region in self._regions.values()]
        return [self._find(name).status]

    def find(self, name: str) -> RegionRef:
        """The whole region `name`; NotFound where none is registered under it."""
        return self._find(name).ref

    def _find(self, name: str) -> _Region:
        try:
            return self._regions[name]
        except KeyError:
            raise NotFound(f"shared memory region '{name}' is not registered") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unregister_all()


def check_overlaps(outputs: Sequence[RegionRef]) -> None:
    """InvalidArgument where two outputs of one request would lie over each other.

    Regions of different names may share a file: what counts is where the bytes are.
    """
    ordered = sorted(
        (ref for ref in outputs if ref.byte_size),
        key=lambda ref: (ref.device, ref.inode, ref.offset),
    )
    for one, other in itertools.pairwise(ordered):
        same_file = (one.device, one.inode) == (other.device, other.inode)
        if same_file and other.offset < one.offset + one.byte_size:
            raise InvalidArgument(
                f"shared memory regions '{one.name}' and '{other.name}': outputs overlap"
            )


def _check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("shared memory region: the name is empty")
    if len(name.encode()) > MAX_NAME:
        raise InvalidArgument(f"shared memory region: the name is over {MAX_NAME} bytes")


def _file_name(name: str, key: str) -> str:
    """The object's name in /dev/shm: `key` with or without a slash before it."""
    file_name = key.lstrip("/")
    if not file_name:
        fault = "is empty"
    elif len(file_name.encode()) > MAX_NAME:
        fault = f"is over {MAX_NAME} bytes"
    elif "/" in file_name or "\0" in file_name or file_name in (".", ".."):
        fault = "is not the name of a shared-memory object"
    elif file_name.startswith(_RESERVED):
        fault = "is reserved"
    else:
        return file_name
    raise InvalidArgument(f"shared memory region '{name}': key {key[:MAX_NAME]!r} {fault}")


def _check_extent(name: str, key: str, found: os.stat_result, offset: int, byte_size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Internal(f"shared memory region '{name}': key '{key}' is not shared memory")
    if offset < 0 or byte_size <= 0 or offset + byte_size > found.st_size:
        raise Internal(
            f"shared memory region '{name}': {byte_size} bytes at offset {offset} do not fit "
            f"key '{key}' of {found.st_size} bytes"
        )
