"""Which prompts are being computed: few enough that each can be cancelled soon."""

from __future__ import annotations

import attrs
import trio

LIMIT = 256
"""Characters of the prompts that are computed together, if there is more than one: some 64
tokens, two batches."""


@attrs.define(eq=False)
class PromptGate:
    """Lets prompts in, first come first served, while they are short together.

    The native side computes prompts in turn, and one whose turn has not come says nothing, so it
    can't be cancelled. Behind the gate it can.
    """

    computing: int = 0
    """Characters that are still to be computed of the prompts inside."""
    _turn: trio.Lock = attrs.field(factory=trio.Lock)
    _left: trio.Event = attrs.field(factory=trio.Event)

    async def enter(self, length: int) -> None:
        """Let a prompt of `length` characters in; `leave` must follow.

        Waits for the prompts before it, bounded by the caller's scope. Cancelled, it isn't in.
        """
        async with self._turn:
            while self.computing and self.computing + length > LIMIT:
                self._left = trio.Event()
                await self._left.wait()
            self.computing += length

    def leave(self, length: int) -> None:
        """Say that `length` characters of a prompt are computed, or given up."""
        self.computing -= length
        self._left.set()
