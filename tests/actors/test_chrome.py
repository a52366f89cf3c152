"""The trace format: what Perfetto relies on holds for every event."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from array import array
from collections import Counter, defaultdict
from typing import Any

import trio
from anyserve_actors import Recording, chrome_trace, span, tracing
from anyserve_actors.recording import Span
from hypothesis import given
from hypothesis import strategies as st

KEYS = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "b": {"name", "cat", "ts", "id", "pid", "tid", "args"},
    "e": {"name", "cat", "ts", "id", "pid", "tid"},
    "s": {"name", "cat", "ts", "id", "pid", "tid", "bp"},
    "t": {"name", "cat", "ts", "id", "pid", "tid", "bp"},
    "f": {"name", "cat", "ts", "id", "pid", "tid", "bp"},
    "i": {"name", "cat", "ts", "s", "pid", "tid", "args"},
    "M": {"name", "pid", "tid", "args"},
}

moments = st.integers(0, 10**15)
lengths = st.integers(0, 10**10)
rows = st.integers(0, 1)
spans = st.builds(
    Span,
    name=st.sampled_from(["queue", "decode"]),
    request_id=st.sampled_from(["r1", "r2", ""]),
    row=rows,
    began=moments,
    duration=st.integers(1, 10**10),
    args=st.just({"tokens": 1}),
    id=st.sampled_from(["", "1", "2"]),
    parent=st.sampled_from(["", "1", "2", "3"]),
)
recordings = st.builds(
    lambda pid, steps, some_spans, dropped: Recording(
        pid, "p", 0, 10**15, ("a", "b"), tuple(some_spans), dropped, 10**9,
        array("q", [number for step in steps for number in step]),
        f"machine {pid % 2}", pid * 1000,
    ),
    st.integers(1, 3),
    st.lists(st.tuples(rows, moments, lengths, lengths), max_size=8),
    st.lists(spans, max_size=8),
    st.integers(0, 1),
)  # fmt: skip


def events_of(trace: bytes) -> list[dict[str, Any]]:
    """The events of a trace, after the checks that hold for any."""
    events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
    open_spans: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)
    last = -math.inf
    for event in events:
        assert set(event) == KEYS[event["ph"]] | {"ph"}
        if event["ph"] == "M":
            assert event["args"]["name"]
            continue
        assert event["ts"] >= last
        last = event["ts"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] in "be":
            key = (event["pid"], event["cat"], event["name"])
            if event["ph"] == "b":
                open_spans[event["id"]].append(key)
            else:  # what has begun last ends first
                assert open_spans[event["id"]].pop() == key
    assert not any(open_spans.values())
    pids = [event["pid"] for event in events if event["name"] == "process_name"]
    assert len(pids) == len(set(pids))
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] in "Xbestf"} <= named
    return events


@given(several=st.lists(recordings, max_size=3))
def test_every_trace_is_well_formed(several: list[Recording]) -> None:
    events = events_of(chrome_trace(several))
    count = Counter(event["ph"] for event in events)
    assert count["b"] == count["e"] == sum(len(recording.spans) for recording in several)
    assert count["s"] == count["f"]
    blocked = sum(step.duration >= 10**9 for r in several for step in r.steps())
    assert count["X"] == blocked + sum(len(list(r.steps())) for r in several)


def recording(pid: int, spans: tuple[Span, ...] = (), dropped: int = 0) -> Recording:
    return Recording(
        pid, f"process {pid}", 1000, 9000, ("a", "b"), spans, dropped, 10**9, array("q")
    )


def test_arrows_lead_from_process_to_process_in_the_order_of_a_request() -> None:
    def part(began: int, request: str = "r1") -> Span:
        return Span("part", request, 1, began, 500, {})

    trace = chrome_trace(
        [
            recording(1, (part(1000), part(2000), part(6000), part(1000, "alone"))),
            recording(2, (part(3000), part(4000))),
        ]
    )
    arrows = [event for event in events_of(trace) if event["ph"] in "stf"]
    assert [(event["ph"], event["ts"], event["pid"], event["tid"]) for event in arrows] == [
        ("s", 1.0, 1, 2),
        ("t", 3.0, 2, 2),
        ("f", 6.0, 1, 2),
    ]
    assert {event["id"] for event in arrows} == {"r1"}


def test_a_blocking_step_is_named_on_a_row_of_its_own() -> None:
    blocked = Recording(
        7, "p", 0, 10**10, ("a", "b"), (), 0, 10**9, array("q", [1, 5, 2 * 10**9, 3000])
    )
    step, event = (event for event in events_of(chrome_trace([blocked])) if event["ph"] == "X")
    assert (step["name"], step["args"]) == ("b", {"waited_us": 3.0})
    assert (event["name"], event["cat"], event["dur"]) == ("blocked by b", "blocking", 2e6)
    assert event["tid"] not in (step["tid"], 1)


def test_a_trace_says_how_many_events_were_dropped() -> None:
    trace = chrome_trace([recording(1, dropped=3), recording(2, dropped=4)])
    assert json.loads(trace)["otherData"] == {"dropped_events": 7}
    names = [event["name"] for event in events_of(trace) if event["ph"] == "i"]
    assert names == [f"{count} events were dropped: the buffer was full" for count in (3, 4)]


CHILD = """
import sys, trio
from anyserve_actors import span, tracing

async def main():
    tracing.start("worker")
    await trio.lowlevel.checkpoint()
    with span("handler", "r1"):
        await trio.lowlevel.checkpoint()
    sys.stdout.buffer.write(tracing.stop().to_bytes())

trio.run(main)
"""


async def test_a_requests_spans_in_two_processes_join_on_one_clock() -> None:
    tracing.start("replica")
    await trio.lowlevel.checkpoint()
    with span("request", "r1"):
        child = await trio.run_process(
            [sys.executable, "-c", CHILD], capture_stdout=True, stderr=subprocess.STDOUT
        )
    worker = Recording.from_bytes(child.stdout)
    events = events_of(chrome_trace([tracing.stop(), worker]))
    order = [(e["ph"], e["name"]) for e in events if e["ph"] in "be"]
    assert order == [("b", "request"), ("b", "handler"), ("e", "handler"), ("e", "request")]
    assert len({event["id"] for event in events if event["ph"] in "besf"}) == 1
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {"replica", "worker"}
    # Perfetto ties an arrow to the task step around it.
    arrows = [event for event in events if event["ph"] in "sf"]
    assert [event["ph"] for event in arrows] == ["s", "f"]
    for arrow in arrows:
        assert any(
            event["ph"] == "X"
            and (event["pid"], event["tid"]) == (arrow["pid"], arrow["tid"])
            and event["ts"] <= arrow["ts"] <= event["ts"] + event["dur"]
            for event in events
        )
