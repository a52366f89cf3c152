"""Snapshots: made once a second for all, and numbers that stay with their requests."""

from __future__ import annotations

import json
from typing import Any, cast

import attrs
from anyserve_actors import Node
from anyserve_actors.tree import State

from anyserve.capability import Capability
from anyserve.errors import Cancelled
from anyserve.http.backend import Offered
from anyserve.http.console.inside import RequestSeen
from anyserve.http.console.snapshot import Snapshots

SEEN = RequestSeen("mine", "decode", "running", "decode-0", 1.0, float("inf"))


@attrs.define(eq=False)
class Asked:
    """A request in flight."""

    aborted: list[Cancelled] = attrs.field(factory=list)

    def abort(self, error: Cancelled) -> None:
        self.aborted.append(error)


@attrs.define
class Fake:
    """An `Inside` and a `Backend`."""

    kind: str = "replica"
    name: str = "one"
    address: str = "here:1"
    draining: bool = False
    now: float = 100.0
    looks: int = 0
    in_flight: int = 0
    asked: list[Asked] = attrs.field(factory=list)

    def replicas(self, now: float) -> Any:
        self.looks += 1
        return [], 0

    def requests(self, now: float) -> Any:
        return dict.fromkeys(self.asked, SEEN)

    def tree(self, now: float) -> Node:
        return Node("root", "root", "", State.RUNNING, now, 0, 0, 0, None, {}, ())

    def offers(self) -> list[Offered]:
        return [
            Offered(Capability("decode.heavy", {"model": "large"}), True),
            Offered(Capability("embedding", {"model": "vectors"}), False),
            Offered(Capability("decode"), True),
        ]


def made() -> tuple[Fake, Snapshots]:
    fake = Fake()
    return fake, Snapshots(cast(Any, fake), cast(Any, fake), lambda: fake.now)


def read(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event[6:])


def test_all_who_look_within_a_second_see_the_same() -> None:
    fake, snapshots = made()
    first = snapshots.event()
    fake.now = 100.9
    assert snapshots.event() is first
    assert fake.looks == 1
    fake.now = 101.0
    assert read(snapshots.event())["uptime"] == 1.0
    assert fake.looks == 2


def test_a_request_keeps_its_number_and_no_other_gets_it() -> None:
    fake, snapshots = made()
    first, second, third = Asked(), Asked(), Asked()
    numbers = []
    for asked in ([first, second], [second], [second, third], []):
        fake.asked = asked
        fake.now += 1
        numbers.append([row["number"] for row in read(snapshots.event())["requests"]])
    assert numbers == [[1, 2], [2], [2, 3], []]


def test_what_is_cancelled_is_cancelled_once() -> None:
    fake, snapshots = made()
    fake.asked = [Asked(), Asked()]
    snapshots.event()
    assert snapshots.cancel(2, Cancelled("so")) is True
    assert snapshots.cancel(2, Cancelled("so")) is False
    assert [len(each.aborted) for each in fake.asked] == [0, 1]


def test_nothing_is_held_when_nobody_looks() -> None:
    fake, snapshots = made()
    fake.asked = [Asked()]
    snapshots.event()
    snapshots.forget()
    assert snapshots.cancel(1, Cancelled("so")) is False
    assert fake.asked[0].aborted == []
    assert [row["number"] for row in read(snapshots.event())["requests"]] == [2]


def test_prompts_go_to_text_models_alone() -> None:
    _, snapshots = made()
    snapshot = read(snapshots.event())
    assert snapshot["models"] == ["large", "decode.heavy"]
    assert snapshot["requests"] == []
