"""Texts that are generated, and how fast they came."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import attrs

_TOPICS = ("rain", "bread", "bridges", "bees", "maps", "clocks", "rivers", "letters")


@attrs.frozen
class Order:
    """A text that is to be generated."""

    prompt: str
    max_tokens: int
    pause: float
    """Seconds that its client thinks before it asks."""


@attrs.frozen
class Text:
    """One text that was generated."""

    first: float
    """Seconds until its first piece."""
    tokens: int


@attrs.frozen
class Speed:
    """How fast some texts came."""

    rate: float
    """Tokens a second, of all texts together."""
    cpu_ms: float
    """CPU time of all processes, milliseconds a token."""
    first_ms: float
    """Median time to the first token of a text."""

    @classmethod
    def of(cls, texts: Sequence[Text], seconds: float, cpu_seconds: float) -> Speed:
        """The speed of texts that took so long together."""
        tokens = sum(text.tokens for text in texts)
        first = statistics.median(text.first for text in texts)
        return cls(tokens / seconds, cpu_seconds / tokens * 1000, first * 1000)


def orders(count: int, seed: int) -> list[Order]:
    """Texts of about 50 tokens that continue prompts of about 30.

    No two prompts of a benchmark begin alike but by chance: what llama.cpp remembers of the last
    prompt in a slot would save computing, and that depends on what else a server was asked.
    Lengths differ, as real ones do; texts that all end at the same step would be computed in step.
    Pauses are up to one step of 8 texts, so that requests come at any moment of a step. Without
    them the next text is asked for when one has ended, which is between two steps: what asks in the
    engine's own process is just in time for the next step, and all others just miss it.
    """
    return [
        Order(
            f"{_code(seed * count + number)}: this is a short and plain introduction to"
            f" {_TOPICS[number % len(_TOPICS)]}, for readers who know nothing of it. First,",
            max_tokens=32 + number * 11 % 36,
            pause=(seed * count + number) * 37 % 100 / 1000,
        )
        for number in range(count)
    ]


def _code(number: int) -> str:
    """Four hexadecimal digits, as good as random."""
    return f"{random.Random(number).getrandbits(16):04x}"
