"""Recordings as one trace in the Chrome JSON format, which Perfetto and `chrome://tracing` open.

Each process has one row for each name of a task, with the task's steps. A request's spans are
nested asynchronous events with the request's id, and arrows lead from process to process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from anyserve_actors.joined import Placed, Request, clock_shifts, requests
from anyserve_actors.recording import Recording

Event: TypeAlias = dict[str, Any]
"""One event as JSON writes it: the format's own keys."""
Timed: TypeAlias = tuple[int, int, int, int, Event]
"""What events are ordered by, and the event: its time in nanoseconds; what ends before what begins;
of those that begin together the longer one first; of those that are as long, what is around it."""
_END, _BEGIN = 0, 1


def chrome_trace(recordings: Iterable[Recording]) -> bytes:
    """The recordings of processes, merged, as JSON, with the clock of the first one's machine.

    Takes about 5 µs an event: where the event loop must go on, call it in a thread.
    """
    recordings = tuple(recordings)
    pids = _pids(recordings)
    shifts = clock_shifts(recordings)
    metadata: list[Event] = []
    timed: list[Timed] = []
    for recording, pid, shift in zip(recordings, pids, shifts, strict=True):
        metadata += _names(recording, pid)
        timed += _steps(recording, pid, shift)
    for request in requests(recordings, shifts):
        timed += _spans(request, pids)
        timed += _arrows(request, pids)
    timed.sort(key=itemgetter(0, 1, 2, 3))
    trace = {
        "displayTimeUnit": "ms",
        "otherData": {"dropped_events": sum(recording.dropped for recording in recordings)},
        "traceEvents": metadata + [event for *_, event in timed],
    }
    return json.dumps(trace, separators=(",", ":")).encode()


def _pids(recordings: Sequence[Recording]) -> list[int]:
    """A number for each process: its own, where none before has that, as in another container."""
    pids: list[int] = []
    for recording in recordings:
        pids.append(recording.pid if recording.pid not in pids else max(pids) + 1)
    return pids


def _names(recording: Recording, pid: int) -> Iterator[Event]:
    yield _metadata("process_name", pid, 0, recording.process)
    for row, name in enumerate(recording.rows):
        yield _metadata("thread_name", pid, _tid(row), name)
    yield _metadata("thread_name", pid, _blocking_tid(recording), "blocking the event loop")


def _metadata(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _steps(recording: Recording, pid: int, shift: int) -> Iterator[Timed]:
    for step in recording.steps():
        began = step.began + shift
        event = {
            "ph": "X",
            "cat": "task",
            "name": recording.rows[step.row],
            "pid": pid,
            "tid": _tid(step.row),
            "ts": began / 1000,
            "dur": step.duration / 1000,
            "args": {"waited_us": step.waited / 1000},
        }
        yield began, _BEGIN, -step.duration, 0, event
        if step.duration >= recording.blocking:
            name = f"blocked by {event['name']}"
            blocked = {**event, "cat": "blocking", "name": name, "tid": _blocking_tid(recording)}
            yield began, _BEGIN, -step.duration, 0, blocked
    if recording.dropped:
        ended = recording.ended + shift
        dropped = {
            "ph": "i",
            "s": "p",
            "cat": "trace",
            "name": f"{recording.dropped} events were dropped: the buffer was full",
            "pid": pid,
            "tid": 0,
            "ts": ended / 1000,
            "args": {"dropped": recording.dropped},
        }
        yield ended, _BEGIN, 0, 0, dropped


def _spans(request: Request, pids: Sequence[int]) -> Iterator[Timed]:
    for placed in request.spans:
        span, pid, depth = placed.span, pids[placed.process], placed.depth
        id = f"{request.id} ({placed.lane + 1})" if placed.lane else request.id
        begin = _request_event("b", span.name, id, pid, span.row, placed.began)
        end = _request_event("e", span.name, id, pid, span.row, placed.ended)
        args = {"request": span.request_id, **span.args}
        yield placed.began, _BEGIN, -span.duration, depth, {**begin, "args": args}
        yield placed.ended, _END, span.duration, -depth, end


def _arrows(request: Request, pids: Sequence[int]) -> Iterator[Timed]:
    """Flow events, where more than one process worked on the request."""
    # The first span of each stay in a process.
    stays: list[Placed] = [
        next(stay) for _, stay in groupby(request.spans, key=lambda placed: placed.process)
    ]
    if len(stays) > 1:
        kinds = ["s", *"t" * (len(stays) - 2), "f"]
        for kind, placed in zip(kinds, stays, strict=True):
            pid, row, began = pids[placed.process], placed.span.row, placed.began
            event = _request_event(kind, "request", request.id, pid, row, began)
            # "e": the arrow meets the task step that the span began in.
            yield began, _BEGIN, 0, 0, {**event, "bp": "e"}


def _request_event(kind: str, name: str, request_id: str, pid: int, row: int, at: int) -> Event:
    return {
        "ph": kind,
        "cat": "request",
        "id": request_id,
        "name": name,
        "pid": pid,
        "tid": _tid(row),
        "ts": at / 1000,
    }


def _tid(row: int) -> int:
    return row + 1


def _blocking_tid(recording: Recording) -> int:
    return len(recording.rows) + 1
