"""Which texts of which requests are encoded together next: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

MAX_TEXTS = 64
"""Texts of one batch: more gain nothing."""
MAX_CHARACTERS = 8192
"""Characters of one batch, if it has more than one text: a fifth of a second at the worst, which
is how long a text that arrives now may wait for the batch before it."""


def plan(waiting: Sequence[Sequence[int]]) -> list[int]:
    """How many of its next texts each waiting request puts into the next batch.

    waiting: for each request, the oldest first, the lengths in characters of the texts that it
        still has. Each puts in one text a round, so that a request with a few texts never waits
        for all of one with thousands. The first text that finds no room ends the batch, so that
        a long one is not passed over for ever. A batch is never empty while texts wait.
    """
    taken = [0] * len(waiting)
    texts = characters = 0
    while any(count < len(lengths) for count, lengths in zip(taken, waiting, strict=True)):
        for index, lengths in enumerate(waiting):
            if taken[index] == len(lengths):
                continue
            length = lengths[taken[index]]
            if texts == MAX_TEXTS or (texts and characters + length > MAX_CHARACTERS):
                return taken
            taken[index] += 1
            texts += 1
            characters += length
    return taken
