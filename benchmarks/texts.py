"""Texts that are generated, and how fast they came."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs

_TOPICS = ("rain", "bread", "bridges", "bees", "maps", "clocks", "rivers", "letters")


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


def prompts(count: int, seed: int) -> list[str]:
    """Prompts of about 30 tokens; no two of a benchmark are equal where their seeds are not."""
    return [
        f"Chapter {seed * count + number}. This is a short and plain introduction to"
        f" {_TOPICS[number % len(_TOPICS)]}, written for readers who know nothing of it. First,"
        for number in range(count)
    ]
