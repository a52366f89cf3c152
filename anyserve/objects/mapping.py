"""The reading side: another process's segments, mapped read-only as blocks of them are asked for.

A mapping lives as long as a view into it, whatever becomes of the segment's name, of its owner or
of the `Reader`; what it says is good for as long as the block's lease, which the owner holds.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from contextlib import suppress
from types import TracebackType
from typing import Self

import attrs

from anyserve.errors import Internal, Unavailable
from anyserve.objects import segments
from anyserve.objects.leases import Block


@attrs.frozen
class ReaderStatistics:
    """What a reader has mapped, views that outlive their segment left out."""

    segments: int
    size: int
    """Bytes of address space."""


@attrs.define(eq=False)
class Reader:
    """Read-only views of blocks, with up to `limit` segments mapped between calls.

    Not for use from several threads. Closing it, as leaving its `with` does, is always silent:
    where a view is alive, its mapping goes with it.
    """

    limit: int = 64
    _mapped: OrderedDict[str, mmap.mmap] = attrs.field(init=False, factory=OrderedDict)
    """By segment name, the least recently used first."""

    def view(self, block: Block) -> memoryview:
        """The block's bytes, read-only uint8 of shape [length].

        Raises Unavailable where its segment is gone or cannot be mapped, and Internal for a block
        that no arena can have made.
        """
        mapped = self._mapped.get(block.segment)
        if mapped is None:
            mapped = self._attach(block.segment)
        else:
            self._mapped.move_to_end(block.segment)
        if block.offset < 0 or block.length < 0 or block.offset + block.length > len(mapped):
            raise Internal(f"{block} is outside its segment of {len(mapped)} bytes")
        return memoryview(mapped)[block.offset : block.offset + block.length]

    def prune(self) -> int:
        """Lets go of segments that their owners unlinked; returns how many.

        Their memory is not free before that. Every new mapping does it too; call it now and then
        so that an idle process does not pin what another has given up.
        """
        gone = [name for name in self._mapped if not segments.exists(name)]
        for name in gone:
            self._drop(name)
        return len(gone)

    def close(self) -> None:
        """Lets go of every segment; the reader can be used again."""
        while self._mapped:
            self._drop(next(iter(self._mapped)))

    def statistics(self) -> ReaderStatistics:
        return ReaderStatistics(
            segments=len(self._mapped), size=sum(map(len, self._mapped.values()))
        )

    def _attach(self, name: str) -> mmap.mmap:
        if not segments.is_segment_name(name):
            raise Internal(f"{name!r} is not the name of a segment")
        self.prune()
        if len(self._mapped) >= self.limit:
            self._drop(next(iter(self._mapped)))
        try:
            mapped = segments.attach(name)
        except OSError as error:
            raise Unavailable(
                f"segment {name} cannot be read: {error.strerror}; its owner may have ended"
            ) from error
        self._mapped[name] = mapped
        return mapped

    def _drop(self, name: str) -> None:
        # With a view alive, this raises and the mapping ends with the view: an mmap, unlike a
        # SharedMemory, says nothing when it is collected.
        with suppress(BufferError):
            self._mapped.pop(name).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
