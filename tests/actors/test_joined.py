"""Spans joined to requests: by their ids, over processes and machines, in lanes where they nest."""

from __future__ import annotations

from array import array

import attrs
from anyserve_actors.joined import clock_shifts, requests
from anyserve_actors.recording import Recording, Span


def part(name: str, began: int, ended: int, id: str = "", parent: str = "") -> Span:
    return Span(name, "t", 0, began, ended - began, {}, id, parent)


def recorded(*spans: Span, machine: str = "m", wall: int = 0) -> Recording:
    return Recording(1, "p", 0, 10**6, ("a",), spans, 0, 10**9, array("q"), machine, wall)


def joined(*recordings: Recording) -> dict[str, list[tuple[str, int, int]]]:
    """Of each request its spans: the name, the lane, and how many are around it there."""
    return {
        request.id: [(each.span.name, each.lane, each.depth) for each in request.spans]
        for request in requests(recordings, clock_shifts(recordings))
    }


def test_a_request_is_followed_from_parent_to_parent_over_processes() -> None:
    scheduler = recorded(
        part("front", 0, 100, "A", "client"),
        part("forward", 10, 40, "A1", "A"),
        part("forward again", 40, 95, "A2", "A"),
    )
    first = recorded(part("refused", 20, 30, "B", "A1"))
    second = recorded(part("infer", 50, 90, "C", "A2"), part("run", 55, 85, "", "C"))
    worker = recorded(part("handler", 60, 80, "", "C"))
    assert joined(scheduler, first, second, worker) == {
        "t": [
            ("front", 0, 0),
            ("forward", 0, 1),
            ("refused", 0, 2),
            ("forward again", 0, 1),
            ("infer", 0, 2),
            ("run", 0, 3),
            ("handler", 0, 4),
        ]
    }


def test_two_requests_of_one_trace_are_told_apart() -> None:
    door = recorded(part("one", 0, 50, "A", "client"), part("two", 10, 40, "B", "client"))
    worker = recorded(part("of two", 20, 30, "", "B"), part("of one", 20, 30, "", "A"))
    assert joined(door, worker) == {
        "t": [("one", 0, 0), ("of one", 0, 1)],
        "t/B": [("two", 0, 0), ("of two", 0, 1)],
    }


def test_what_a_handler_calls_at_the_same_time_has_lanes_of_its_own() -> None:
    recording = recorded(
        part("caller", 0, 100, "A"),
        part("first", 10, 60, "B", "A"),
        part("within its time, and no part of it", 20, 50, "C", "A"),
        part("second", 55, 90, "D", "A"),
        part("of second", 70, 80, "", "D"),
        part("third", 95, 98, "E", "A"),
    )
    assert joined(recording)["t"] == [
        ("caller", 0, 0),
        ("first", 0, 1),
        ("within its time, and no part of it", 1, 0),
        ("second", 1, 0),
        ("of second", 1, 1),
        ("third", 0, 1),
    ]


def test_a_span_that_outlasts_its_whole_goes_beside_it() -> None:
    recording = recorded(part("cancelled", 0, 50, "A"), part("run", 10, 60, "", "A"))
    assert joined(recording)["t"] == [("cancelled", 0, 0), ("run", 1, 0)]


def test_where_the_whole_was_not_recorded_its_parts_still_belong_together() -> None:
    recording = recorded(part("run", 0, 50, "", "A"), part("handler", 10, 40, "", "A"))
    assert joined(recording) == {"t": [("run", 0, 0), ("handler", 0, 1)]}


def test_spans_that_name_each_other_as_their_parent_still_come_to_an_end() -> None:
    recording = recorded(part("a", 0, 50, "A", "B"), part("b", 10, 40, "B", "A"))
    assert sum(map(len, joined(recording).values())) == 2


def test_machines_are_put_on_one_clock_by_their_wall_clocks() -> None:
    here = recorded(wall=1_000)
    there = recorded(machine="other", wall=1_700)
    drifted = attrs.evolve(there, wall=1_705)
    assert clock_shifts([here, there, recorded(wall=1_003), drifted]) == [0, 700, 0, 700]
    assert clock_shifts([]) == []
    (request,) = requests([here, recorded(part("x", 5, 9), machine="n", wall=900)], [0, -100])
    assert [each.began for each in request.spans] == [-95]
