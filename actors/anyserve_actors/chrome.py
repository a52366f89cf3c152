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

from anyserve_actors.recording import Recording

Event: TypeAlias = dict[str, Any]
"""One event as JSON writes it: the format's own keys."""
Timed: TypeAlias = tuple[int, int, int, Event]
"""What events are ordered by, and the event: its time in nanoseconds; what ends before what begins;
of those that begin together the longer one first."""
_END, _BEGIN = 0, 1


def chrome_trace(recordings: Iterable[Recording]) -> bytes:
    """The recordings of one machine's processes, merged, as JSON.

    Takes about 5 µs an event: where the event loop must go on, call it in a thread.
    """
    recordings = tuple(recordings)
    metadata = [event for recording in recordings for event in _names(recording)]
    timed = [event for recording in recordings for event in _events(recording)]
    timed += _arrows(recordings)
    timed.sort(key=itemgetter(0, 1, 2))
    trace = {
        "displayTimeUnit": "ms",
        "otherData": {"dropped_events": sum(recording.dropped for recording in recordings)},
        "traceEvents": metadata + [event for *_, event in timed],
    }
    return json.dumps(trace, separators=(",", ":")).encode()


def _names(recording: Recording) -> Iterator[Event]:
    pid = recording.pid
    yield _metadata("process_name", pid, 0, recording.process)
    for row, name in enumerate(recording.rows):
        yield _metadata("thread_name", pid, _tid(row), name)
    yield _metadata("thread_name", pid, _blocking_tid(recording), "blocking the event loop")


def _metadata(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _events(recording: Recording) -> Iterator[Timed]:
    pid = recording.pid
    for step in recording.steps():
        event = {
            "ph": "X",
            "cat": "task",
            "name": recording.rows[step.row],
            "pid": pid,
            "tid": _tid(step.row),
            "ts": step.began / 1000,
            "dur": step.duration / 1000,
            "args": {"waited_us": step.waited / 1000},
        }
        yield step.began, _BEGIN, -step.duration, event
        if step.duration >= recording.blocking:
            name = f"blocked by {event['name']}"
            blocked = {**event, "cat": "blocking", "name": name, "tid": _blocking_tid(recording)}
            yield step.began, _BEGIN, -step.duration, blocked
    for span in recording.spans:
        ended = span.began + span.duration
        begin = _request_event("b", span.name, span.request_id, pid, span.row, span.began)
        end = _request_event("e", span.name, span.request_id, pid, span.row, ended)
        yield span.began, _BEGIN, -span.duration, {**begin, "args": dict(span.args)}
        yield ended, _END, span.duration, end
    if recording.dropped:
        yield (
            recording.ended,
            _BEGIN,
            0,
            {
                "ph": "i",
                "s": "p",
                "cat": "trace",
                "name": f"{recording.dropped} events were dropped: the buffer was full",
                "pid": pid,
                "tid": 0,
                "ts": recording.ended / 1000,
                "args": {"dropped": recording.dropped},
            },
        )


def _arrows(recordings: Sequence[Recording]) -> Iterator[Timed]:
    """Flow events for each request that more than one process worked on."""
    begins = sorted(
        (span.request_id, span.began, recording.pid, span.row)
        for recording in recordings
        for span in recording.spans
    )
    for request_id, group in groupby(begins, key=itemgetter(0)):
        # The first span of each stay in a process.
        stays = [next(stay) for _, stay in groupby(group, key=itemgetter(2))]
        if len(stays) > 1:
            kinds = ["s", *"t" * (len(stays) - 2), "f"]
            for kind, (_, began, pid, row) in zip(kinds, stays, strict=True):
                event = _request_event(kind, "request", request_id, pid, row, began)
                # "e": the arrow meets the task step that the span began in.
                yield began, _BEGIN, 0, {**event, "bp": "e"}


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
