"""How long things took, counted by fixed bounds: what a scrape of metrics shows as a histogram."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0),
)
"""Seconds; each is the largest time of its bucket. One more bucket has what took longer."""


class Histogram:
    """Times of one kind. Cheap to add to: one search in `BOUNDS`, no allocation."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """By bucket, each without those before it."""
        self.sum = 0.0
        """Seconds of all together."""

    def observe(self, seconds: float, times: int = 1) -> None:
        """One more took so long, or `times` more."""
        self.counts[bisect_left(BOUNDS, seconds)] += times
        self.sum += seconds * times
