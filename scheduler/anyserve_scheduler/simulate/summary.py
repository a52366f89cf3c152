"""What a run comes to, in numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import attrs

BINS = 60
"""Points of a plot over time."""


@attrs.frozen
class Bin:
    """A stretch of the run. Times in seconds."""

    at: float
    """When it begins."""
    goodput: float
    """Requests answered a second."""
    wait_p99: float
    """Of those answered in it."""


@attrs.frozen
class Result:
    """One run of one policy. Times in seconds, of the simulation where nothing else is said."""

    scenario: str
    policy: str
    requests: int
    replicas: int
    outcomes: dict[str, int]
    """How many requests ended how; `answered`, or a status."""
    duration: float
    """From the first arrival to the last outcome."""
    goodput: float
    """Requests answered in time, a second."""
    wait_mean: float
    """From arrival until the handler starts, of answered requests; also the next two."""
    wait_p50: float
    wait_p99: float
    time_p50: float
    """From arrival to answer."""
    time_p99: float
    hit_rate: float
    """Fraction of the prompts' blocks that were cached where they went."""
    delegated: int
    """Requests that a replica handed back."""
    retried: int
    """Times that a request went on since a replica had not taken it."""
    resumed: int
    """Requests that went on since a replica was lost with them."""
    loads: int
    """Capabilities that a replica was asked to load."""
    unloads: int
    decisions: int
    decision_mean: float
    """Of this machine's time; also the next two."""
    decision_p99: float
    wall: float
    """What the whole run took."""
    events: int
    broken: int
    """Invariants, how often."""
    violations: tuple[str, ...]
    """In words, the first of them."""
    digest: str
    """Of all outcomes: equal for equal runs."""
    bins: tuple[Bin, ...]


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Of values in order; 0 where there are none."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return sum(values) / len(values) if values else 0.0


def bins(ended: array[float], waits: array[float], begin: float, end: float) -> tuple[Bin, ...]:
    """The run from `begin` to `end` in equal stretches. ended, waits: of answered requests."""
    width = (end - begin) / BINS
    if width <= 0:
        return ()
    parts: list[list[float]] = [[] for _ in range(BINS)]
    for at, wait in zip(ended, waits, strict=True):
        parts[min(BINS - 1, int((at - begin) / width))].append(wait)
    return tuple(
        Bin(begin + number * width, len(part) / width, quantile(sorted(part), 0.99))
        for number, part in enumerate(parts)
    )
