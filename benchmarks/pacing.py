"""What a stream is asked for, and when its messages are due; every server follows it.

Only the standard library, since peers import it in environments of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Stream(NamedTuple):
    """A stream of small messages."""

    messages: int
    gap: float = 0.0
    """Seconds from one message to the next; 0 for back to back."""
    in_step: bool = False
    """Whether all streams send at the same moments, as those of one engine's batch do."""

    @classmethod
    def parse(cls, values: Iterable[int]) -> Stream:
        """From the three numbers of `numbers`."""
        messages, gap_us, in_step = map(int, values)
        return cls(messages, gap_us / 1e6, bool(in_step))

    def numbers(self) -> tuple[int, int, int]:
        """The INT32 tensor that asks for it: messages, microseconds between them, in step."""
        return self.messages, round(self.gap * 1e6), int(self.in_step)

    def due(self, now: float) -> Iterator[float]:
        """When each message of a stream that begins now is to be sent."""
        first = now
        if self.in_step:
            first = next_step(now, self.gap)
        elif self.gap:
            first += random.random() * self.gap
        return (first + number * self.gap for number in range(self.messages))


def next_step(now: float, gap: float) -> float:
    """When the next message of all streams that are in step is due."""
    return (now // gap + 1) * gap
