"""Who holds which bytes of an arena: `Block`, `Lease`, and the `LeaseSet` of one holder.

Leases live in the process that owns the arena and nowhere else. Another process knows only the
block; what it was lent is in its `LeaseSet` on the owner's side, and ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import attrs


@attrs.frozen
class Block:
    """Where bytes lie, for any process of this machine."""

    segment: str
    """Name of the shared-memory segment."""
    offset: int
    """Bytes from the segment's start."""
    length: int
    """Bytes."""


class LeaseError(RuntimeError):
    """A lease was used against its count: a bug in the caller, never a client's mistake."""


@attrs.define(eq=False)
class Lease:
    """A counted hold on a block of an arena; the bytes are free for others at zero.

    Begins with one holder. The last `release` ends it for good: releasing, retaining or writing
    after that raises `LeaseError` and changes nothing. `with lease:` releases at its end.
    """

    block: Block
    _view: memoryview | None
    _free: Callable[[Block], None]
    _holders: int = attrs.field(init=False, default=1)

    @property
    def holders(self) -> int:
        return self._holders

    @property
    def buffer(self) -> memoryview:
        """The block's writable bytes, uint8 of shape [length]; not to be kept past the lease."""
        if self._view is None:
            raise LeaseError(f"{self.block} was released")
        return self._view

    def retain(self) -> Self:
        """One more holder, who owes one more release."""
        if not self._holders:
            raise LeaseError(f"{self.block} was released")
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less."""
        if not self._holders:
            raise LeaseError(f"{self.block} was released more often than retained")
        self._holders -= 1
        if not self._holders:
            self._view = None
            self._free(self.block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@attrs.define(eq=False)
class LeaseSet:
    """What one holder has: a request, or all that was lent to one worker.

    However the holder ends, `release_all` (or the end of a `with`) lets go of the rest.
    """

    _held: dict[Block, Lease] = attrs.field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, lease: Lease) -> Block:
        """Takes over one of the lease's holds; LeaseError where the set has the block already."""
        if lease.block in self._held:
            raise LeaseError(f"{lease.block} is in the set already")
        self._held[lease.block] = lease
        return lease.block

    def release(self, block: Block) -> None:
        """Releases one block; LeaseError where the set does not have it."""
        lease = self._held.pop(block, None)
        if lease is None:
            raise LeaseError(f"{block} is not in the set")
        lease.release()

    def release_all(self) -> int:
        """Releases what is left; returns how many blocks that were."""
        held, self._held = self._held, {}
        for lease in held.values():
            lease.release()
        return len(held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release_all()
