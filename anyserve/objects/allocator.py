"""Which bytes of one segment are taken: a pure first-fit allocator that owns no memory."""

from __future__ import annotations

from bisect import bisect_left

import attrs

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector load."""


def aligned(length: int) -> int:
    """The bytes that an allocation of `length` takes: never none, a multiple of ALIGNMENT."""
    return max(ALIGNMENT, -(-length // ALIGNMENT) * ALIGNMENT)


@attrs.frozen
class AllocatorStatistics:
    """All in bytes, except for the counts."""

    size: int
    used: int
    """What allocations take, rounding included."""
    allocations: int
    holes: int
    """Free extents: 1 when nothing is fragmented, 0 when all is taken."""
    largest_hole: int


@attrs.define(eq=False)
class Allocator:
    """Hands out aligned extents of [0, size), lowest first.

    Lowest first keeps the high-water mark, and so the memory that has to be reserved, low.
    """

    size: int
    used: int = attrs.field(init=False, default=0)
    _taken: dict[int, int] = attrs.field(init=False, factory=dict)
    """Offset to length of each allocation."""
    _starts: list[int] = attrs.field(init=False)
    """Offsets of the free extents, ascending; no two extents touch."""
    _lengths: list[int] = attrs.field(init=False)
    """Their lengths, in the same order."""

    def __attrs_post_init__(self) -> None:
        self._starts, self._lengths = [0], [self.size]

    def __len__(self) -> int:
        """How many allocations there are."""
        return len(self._taken)

    def allocate(self, length: int) -> int | None:
        """The offset of `length` free bytes, taken from now on; None where no hole is that large.

        Raises ValueError for a negative length.
        """
        if length < 0:
            raise ValueError(f"cannot allocate {length} bytes")
        need = aligned(length)
        if need > self.size - self.used:
            return None
        for index, hole in enumerate(self._lengths):
            if hole < need:
                continue
            offset = self._starts[index]
            if hole == need:
                del self._starts[index], self._lengths[index]
            else:
                self._starts[index] += need
                self._lengths[index] -= need
            self._taken[offset] = need
            self.used += need
            return offset
        return None

    def free(self, offset: int) -> None:
        """Gives an allocation back; KeyError where none begins at `offset`."""
        length = self._taken.pop(offset)
        self.used -= length
        index = bisect_left(self._starts, offset)
        end = offset + length
        if index < len(self._starts) and self._starts[index] == end:
            length += self._lengths[index]
            del self._starts[index], self._lengths[index]
        if index and self._starts[index - 1] + self._lengths[index - 1] == offset:
            self._lengths[index - 1] += length
        else:
            self._starts.insert(index, offset)
            self._lengths.insert(index, length)

    def statistics(self) -> AllocatorStatistics:
        return AllocatorStatistics(
            size=self.size,
            used=self.used,
            allocations=len(self._taken),
            holes=len(self._lengths),
            largest_hole=max(self._lengths, default=0),
        )
