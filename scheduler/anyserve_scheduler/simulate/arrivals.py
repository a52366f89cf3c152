"""Arrival traces: which requests come when. They depend on the scenario alone, not on answers."""

from __future__ import annotations

import csv
import heapq
import itertools
import math
from collections.abc import Iterator
from random import Random

import attrs

from anyserve_scheduler.simulate.scenario import Scenario, ScenarioError, TrafficSpec


@attrs.frozen
class Arrival:
    """One request as its client makes it. Times in seconds, of the simulation."""

    at: float
    traffic: TrafficSpec
    service: float
    """That it holds its slot at speed 1, its prompt's blocks aside."""
    direct: bool
    """To some replica, not to the scheduler."""
    gives_up: float
    """When its client does; inf for never."""
    session: str | None = None
    blocks: tuple[bytes, ...] = ()
    """Hashes of its prompt's."""


def arrivals(scenario: Scenario) -> Iterator[Arrival]:
    """All requests of a run, in the order of their times."""
    streams = [
        _stream(traffic, index, Random(f"{scenario.seed}/traffic/{index}"))
        for index, traffic in enumerate(scenario.traffic)
    ]
    merged = heapq.merge(*streams, key=lambda arrival: arrival.at)
    return itertools.islice(merged, scenario.requests)


def _stream(traffic: TrafficSpec, index: int, rng: Random) -> Iterator[Arrival]:
    if traffic.kind == "conversations":
        yield from _conversations(traffic, index, rng)
    elif traffic.kind == "file":
        for at, service in _file(traffic):
            yield _arrival(traffic, traffic.start + at, rng, service)
    else:
        for at in _times(traffic, rng):
            yield _arrival(traffic, at, rng)


def _times(traffic: TrafficSpec, rng: Random) -> Iterator[float]:
    """Those of a Poisson process whose rate changes in time, by thinning one of its peak's."""
    peak = traffic.rate if traffic.kind in ("poisson", "conversations") else _peak(traffic)
    at = traffic.start
    while True:
        at += rng.expovariate(peak)
        if rng.random() * peak <= _rate(traffic, at - traffic.start):
            yield at


def _peak(traffic: TrafficSpec) -> float:
    return traffic.rate * traffic.factor


def _rate(traffic: TrafficSpec, elapsed: float) -> float:
    """Requests a second at a moment; the mean over a period is the traffic's `rate`."""
    phase = elapsed / traffic.period % 1.0
    if traffic.kind == "diurnal":
        # From the lowest at midnight to the peak at noon.
        return traffic.rate * (1 - (traffic.factor - 1) * math.cos(2 * math.pi * phase))
    if traffic.kind == "bursts":
        # All of a period's requests come in the first 1/factor of it.
        return _peak(traffic) if phase < 1 / traffic.factor else 0.0
    return traffic.rate


def _conversations(traffic: TrafficSpec, index: int, rng: Random) -> Iterator[Arrival]:
    """Turns of conversations: each prompt is the one before and some blocks more."""
    begins = _times(traffic, rng)
    next_begin = next(begins)
    turns: list[tuple[float, int, int, int]] = []  # when, whose, which one, which system prompt
    count = 0
    while True:
        while not turns or next_begin <= turns[0][0]:
            heapq.heappush(turns, (next_begin, count, 1, rng.randrange(traffic.systems)))
            count += 1
            next_begin = next(begins)
        at, whose, turn, system = heapq.heappop(turns)
        if turn < traffic.turns:
            think = rng.expovariate(1 / traffic.think) if traffic.think else 0.0
            heapq.heappush(turns, (at + think, whose, turn + 1, system))
        blocks = tuple(
            [b"%d/s%d/%d" % (index, system, block) for block in range(traffic.system_blocks)]
            + [b"%d/c%d/%d" % (index, whose, block) for block in range(traffic.blocks * turn)]
        )
        session = f"{index}/{whose}" if traffic.sticky else None
        yield attrs.evolve(_arrival(traffic, at, rng), session=session, blocks=blocks)


def _file(traffic: TrafficSpec) -> Iterator[tuple[float, float | None]]:
    """The lines of a trace file; a service time that is not there is drawn."""
    assert traffic.file is not None
    before = 0.0
    try:
        with traffic.file.open(newline="") as lines:
            for number, row in enumerate(csv.reader(lines), 1):
                where = f"{traffic.file}, line {number}"
                if not row or row[0].lstrip().startswith("#"):
                    continue
                at, service = _numbers(row, where)
                if at < before:
                    raise ScenarioError(f"{where}: earlier than the line before")
                before = at
                yield at, service
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{traffic.file} can't be read: {error}") from None


def _numbers(row: list[str], where: str) -> tuple[float, float | None]:
    try:
        values = [float(field) for field in row]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 2 or not all(0 <= value < math.inf for value in values):
        raise ScenarioError(f"{where}: not an arrival time and a service time in seconds")
    return values[0], values[1] if len(values) == 2 else None


def _arrival(traffic: TrafficSpec, at: float, rng: Random, service: float | None = None) -> Arrival:
    """Everything is drawn for every request, so that one knob moves nothing else."""
    drawn = rng.expovariate(1 / traffic.service)
    if service is None:
        service = traffic.service if traffic.spread == "constant" else drawn
    direct = rng.random() < traffic.direct
    patience = rng.random() * 2 * traffic.service
    gives_up = at + patience if rng.random() < traffic.cancelled else math.inf
    return Arrival(at, traffic, service, direct, gives_up)
