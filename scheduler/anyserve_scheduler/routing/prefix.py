"""Which replica has the beginning of a prompt in its cache, as far as the scheduler knows.

A prompt is cut into blocks, each with a hash that covers all before it too, so that two prompts
have a block's hash in common only if they are equal up to its end.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import attrs

from anyserve_scheduler.routing.inflight import Key

BLOCK = 256
"""Bytes in a block: about 64 tokens of text, or 64 tokens of 32 bits."""
BLOCKS_LIMIT = 1024
"""Blocks of one prompt that count; what comes after them does not change where it goes."""
HASH_BYTES = 8
_HOLDERS = 8
"""Offers that are kept for one block. What more have is no reason to choose between them."""


def block_hashes(
    prompt: bytes | memoryview, block: int = BLOCK, limit: int = BLOCKS_LIMIT
) -> tuple[bytes, ...]:
    """The hashes of the first `limit` whole blocks of `block` bytes, the first block first.

    For tokens, give their bytes, little-endian, and a multiple of a token's size. The same prompt
    gives the same hashes in every process, so that replicas can report what they hold.
    """
    view = memoryview(prompt).cast("B")
    running = hashlib.blake2b(digest_size=HASH_BYTES)
    hashes = []
    for start in range(0, min(len(view) // block, limit) * block, block):
        running.update(view[start : start + block])
        hashes.append(running.copy().digest())
    return tuple(hashes)


@attrs.frozen
class PrefixStatistics:
    """How full a `PrefixTable` is."""

    entries: int
    """Pairs of a block and an offer that holds it."""
    blocks: int
    offers: int


class PrefixTable:
    """Block hashes and the offers that hold them. It learns from routing; reports correct it.

    entries: pairs of block and offer at most. When there are more, the offer that has been quiet
    for longest loses its oldest one.
    share: of these, for one offer of one replica, so that none fills the table alone.
    """

    def __init__(self, entries: int = 1 << 18, share: int = 1 << 13) -> None:
        self._limit = entries
        self._share = min(share, entries)
        self._entries = 0
        self._holders: dict[bytes, tuple[Key, ...]] = {}
        """By block, the latest first, never more than `_HOLDERS`."""
        self._held: OrderedDict[Key, OrderedDict[bytes, None]] = OrderedDict()
        """By offer, the one that learned last at the end; its blocks, the latest at the end."""

    def statistics(self) -> PrefixStatistics:
        """How full it is."""
        return PrefixStatistics(self._entries, len(self._holders), len(self._held))

    def matches(self, blocks: Sequence[bytes]) -> list[tuple[Key, int]]:
        """The offers that hold the first block, each with how many it holds from there on."""
        found: list[tuple[Key, int]] = []
        holding: list[Key] = []
        before: tuple[Key, ...] | None = None
        depth = 0
        for block in blocks:
            holders = self._holders.get(block)
            if holders is not before:
                if holders is None:
                    break
                if before is None:
                    holding = list(holders)
                elif holders != before:
                    found += [(key, depth) for key in holding if key not in holders]
                    holding = [key for key in holding if key in holders]
                    if not holding:
                        break
                before = holders
            elif before is None:
                break
            depth += 1
        found += [(key, depth) for key in holding]
        return found

    def stored(self, key: Key, blocks: Sequence[bytes]) -> None:
        """`key` holds these blocks of one prompt, the first block first.

        Called for a request that is sent there, and for what its replica reports.
        """
        if not blocks:
            return
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = OrderedDict()
        self._held.move_to_end(key)
        before: tuple[Key, ...] | None = ()
        after: tuple[Key, ...] = ()
        # The last block is touched first and so goes first: without those before it, it is of no
        # use. Neighbours mostly have the same holders, and share one tuple of them.
        for block in reversed(blocks[: self._share]):
            if block in held:
                held.move_to_end(block)
                continue
            holders = self._holders.get(block)
            if holders is not before:
                before, after = holders, (key, *(holders or ())[: _HOLDERS - 1])
            if holders is not None and len(holders) == _HOLDERS:
                self._unhold(holders[-1], block)
            self._holders[block] = after
            held[block] = None
            self._entries += 1
        while len(held) > self._share:
            self._drop(key, next(iter(held)))
        while self._entries > self._limit:
            quiet, its = next(iter(self._held.items()))
            self._drop(quiet, next(iter(its)))

    def evicted(self, key: Key, blocks: Iterable[bytes]) -> None:
        """`key` does not hold these blocks any more; those it never held are ignored."""
        for block in blocks:
            if block in self._held.get(key, ()):
                self._drop(key, block)

    def forget(self, key: Key) -> None:
        """`key` holds nothing: it left, or it started anew."""
        for block in list(self._held.get(key, ())):
            self._drop(key, block)

    def _drop(self, key: Key, block: bytes) -> None:
        rest = tuple([holder for holder in self._holders[block] if holder != key])
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]
        self._unhold(key, block)

    def _unhold(self, key: Key, block: bytes) -> None:
        held = self._held[key]
        del held[block]
        self._entries -= 1
        if not held:
            del self._held[key]
