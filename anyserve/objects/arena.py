"""The arena: where one process writes tensors once, for the others of its replica to map.

The process that allocates in an arena is its only owner: what is taken is known here alone, and
nothing in shared memory needs a lock. The replica has one for requests, each worker one for
replies, under a prefix that its replica gave it, so that the replica can unlink what a dead worker
leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import attrs

from anyserve.errors import ResourceExhausted
from anyserve.objects.allocator import Allocator, aligned
from anyserve.objects.leases import Block, Lease
from anyserve.objects.segments import Segment, free_bytes

Buffer = bytes | bytearray | memoryview

SEGMENT_SIZE = 32 << 20
"""Bytes of an ordinary segment; a larger allocation gets a segment of its own size."""


class ArenaFull(ResourceExhausted):
    """The arena's limit, or the machine's shared memory, has no room for an allocation."""


def default_limit() -> int:
    """Half of what /dev/shm has free now, in bytes."""
    return free_bytes() // 2


def raw_bytes(buffer: Buffer) -> memoryview:
    """The memory of a buffer, uint8 of shape [n]; raises BufferError where it is not just that."""
    view = memoryview(buffer)
    if view.format != "B" or view.ndim != 1 or not view.contiguous:
        raise BufferError("the buffer is more than bytes in a row")
    return view


@attrs.frozen
class ArenaStatistics:
    """All in bytes, except for the counts."""

    limit: int
    segments: int
    size: int
    """Address space of the segments; never more than the limit."""
    reserved: int
    """The part of it that has cost memory."""
    used: int
    """What live leases take, rounding included."""
    leases: int


@attrs.frozen(eq=False)
class _Slab:
    """A segment and what is taken of it."""

    segment: Segment
    allocator: Allocator


@attrs.define(eq=False)
class Arena:
    """Leases of shared memory, up to `limit` bytes, grown by segments.

    Owns nothing until the first allocation. Segments are unlinked as they empty, except for one
    of ordinary size, which stays warm. Not for use from several threads. `close`, or leaving its
    `with`, unlinks everything: views taken before stay valid, leases can still be released.
    """

    prefix: str
    """Of the segments' names, from `new_prefix`; no other arena may have it."""
    limit: int = attrs.field(factory=default_limit)
    segment_size: int = SEGMENT_SIZE
    _slabs: dict[str, _Slab] = attrs.field(init=False, factory=dict)
    """By segment name, oldest first."""
    _size: int = attrs.field(init=False, default=0)
    """Sum of the segments' sizes, bytes."""
    _leases: int = attrs.field(init=False, default=0)
    _closed: bool = attrs.field(init=False, default=False)
    _numbers: Iterator[int] = attrs.field(init=False, factory=itertools.count)

    def allocate(self, length: int) -> Lease:
        """A lease of `length` bytes to write into through its `buffer`; their content is undefined.

        Raises ArenaFull, and RuntimeError once closed.
        """
        slab, offset = self._place(length)
        try:
            slab.segment.reserve(offset + length)
        except OSError as error:
            slab.allocator.free(offset)
            self._retire(slab)
            raise _out_of_memory(length, error) from error
        self._leases += 1
        return Lease(
            Block(slab.segment.name, offset, length),
            slab.segment.view(offset, length),
            self._free,
        )

    def put(self, buffers: Sequence[Buffer]) -> Lease:
        """A lease with the bytes of `buffers` in it, one after the other: the one copy there is.

        Raises as `allocate` and `raw_bytes` do.
        """
        pieces = [raw_bytes(buffer) for buffer in buffers]
        lease = self.allocate(sum(len(piece) for piece in pieces))
        start = 0
        for piece in pieces:
            end = start + len(piece)
            lease.buffer[start:end] = piece
            start = end
        return lease

    def close(self) -> None:
        """Unlinks every segment. Nothing can be allocated after that."""
        self._closed = True
        for slab in list(self._slabs.values()):
            self._drop(slab)

    def statistics(self) -> ArenaStatistics:
        slabs = self._slabs.values()
        return ArenaStatistics(
            limit=self.limit,
            segments=len(slabs),
            size=self._size,
            reserved=sum(slab.segment.reserved for slab in slabs),
            used=sum(slab.allocator.used for slab in slabs),
            leases=self._leases,
        )

    def _place(self, length: int) -> tuple[_Slab, int]:
        """Takes `length` bytes in the oldest segment with room, or in a new one."""
        for slab in self._slabs.values():
            offset = slab.allocator.allocate(length)
            if offset is not None:
                return slab, offset
        slab = self._grow(length)
        offset = slab.allocator.allocate(length)
        assert offset is not None, "a new segment is as large as what it was made for"
        return slab, offset

    def _grow(self, length: int) -> _Slab:
        if self._closed:
            raise RuntimeError("the arena is closed")
        need = aligned(length)
        if need > self.limit - self._size:
            for slab in [slab for slab in self._slabs.values() if not len(slab.allocator)]:
                self._drop(slab)
        room = self.limit - self._size
        if need > room:
            raise ArenaFull(
                f"shared memory: {length} bytes do not fit, "
                f"{self._size} of {self.limit} bytes are in use"
            )
        size = max(need, min(self.segment_size, room))
        try:
            segment = Segment(f"{self.prefix}-{next(self._numbers)}", size)
        except OSError as error:
            raise _out_of_memory(length, error) from error
        slab = self._slabs[segment.name] = _Slab(segment, Allocator(size))
        self._size += size
        return slab

    def _free(self, block: Block) -> None:
        """Called by a lease when its last holder lets go."""
        self._leases -= 1
        slab = self._slabs.get(block.segment)
        if slab is not None:
            slab.allocator.free(block.offset)
            self._retire(slab)

    def _retire(self, slab: _Slab) -> None:
        """Drops a segment that is empty, unless it is the one to be kept warm."""
        if len(slab.allocator):
            return
        spare = any(not len(other.allocator) for other in self._slabs.values() if other is not slab)
        if spare or slab.allocator.size > self.segment_size:
            self._drop(slab)

    def _drop(self, slab: _Slab) -> None:
        del self._slabs[slab.segment.name]
        self._size -= slab.allocator.size
        slab.segment.unlink()
        slab.segment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _out_of_memory(length: int, error: OSError) -> ArenaFull:
    return ArenaFull(f"shared memory: no room for {length} bytes: {error.strerror}")
