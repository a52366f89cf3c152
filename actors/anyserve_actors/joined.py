"""Spans of several processes joined to requests, on one clock, and laid out so that they nest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from anyserve_actors.recording import Recording, Span


@attrs.define
class Placed:
    """A span at its place in the trace."""

    span: Span
    process: int
    """Index of its recording."""
    began: int
    """Nanoseconds of the clock that the whole trace has."""
    lane: int = 0
    """Within a lane of a request spans follow one another or are parts of one another."""
    depth: int = 0
    """How many spans of its lane are around it."""

    @property
    def ended(self) -> int:
        """On the same clock."""
        return self.began + self.span.duration

    @property
    def owner(self) -> str:
        """The id of the span that its parts name: its own, or that of what it is a part of."""
        return self.span.id or self.span.parent


@attrs.frozen
class Request:
    """All that was done for one request."""

    id: str
    """The spans' request id, for the first request that has it; of others, their first span's id
    is behind that."""
    spans: Sequence[Placed]
    """By the time when they began."""


def clock_shifts(recordings: Sequence[Recording]) -> list[int]:
    """Nanoseconds to add to each recording's times, to have them on the clock of the first one.

    None on one machine. What comes from another machine is placed by the wall clocks, and is as
    far off as those are.
    """
    walls: dict[str, int] = {}
    for recording in recordings:
        walls.setdefault(recording.machine, recording.wall)
    base = recordings[0].wall if recordings else 0
    return [walls[recording.machine] - base for recording in recordings]


def requests(recordings: Sequence[Recording], shifts: Sequence[int]) -> Iterator[Request]:
    """What was done for each request, in all processes."""
    groups: defaultdict[str, list[Placed]] = defaultdict(list)
    for process, (recording, shift) in enumerate(zip(recordings, shifts, strict=True)):
        for span in recording.spans:
            groups[span.request_id].append(Placed(span, process, span.began + shift))
    for request_id, group in groups.items():
        group.sort(key=lambda placed: (placed.began, -placed.span.duration))
        parents = {each.span.id: each.span.parent for each in group if each.span.id}
        by_root: defaultdict[str, list[Placed]] = defaultdict(list)
        for placed in group:
            by_root[_root(placed.owner, parents)].append(placed)
        for number, (root, spans) in enumerate(by_root.items()):
            _lay_out(spans)
            yield Request(f"{request_id}/{root}" if number else request_id, spans)


def _root(owner: str, parents: Mapping[str, str]) -> str:
    """The first span that one was begun for, over all those between them that were recorded."""
    seen = {owner}
    while (parent := parents.get(owner, "")) in parents and parent not in seen:
        seen.add(parent)
        owner = parent
    return owner


def _lay_out(spans: Iterable[Placed]) -> None:
    """Put each into the first lane where it is a part of what is around it, in time and by name."""
    lanes: list[list[Placed]] = []
    for placed in spans:
        lane = next(
            (lane for lane, around in enumerate(lanes) if _fits(placed, around)), len(lanes)
        )
        if lane == len(lanes):
            lanes.append([])
        placed.lane, placed.depth = lane, len(lanes[lane])
        lanes[lane].append(placed)


def _fits(placed: Placed, around: list[Placed]) -> bool:
    """Whether it goes into a lane that has these open, without those that have ended by then."""
    while around and around[-1].ended <= placed.began:
        around.pop()
    if not around:
        return True
    return placed.ended <= around[-1].ended and placed.span.parent == around[-1].owner
