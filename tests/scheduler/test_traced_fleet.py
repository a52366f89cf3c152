"""One request through a fleet of real processes: its trace context, and what a trace shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
from tritonclient.grpc import service_pb2

from anyserve.client import encode_request

pb: Any = service_pb2
ROOT = Path(__file__).parents[2]
FORM = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
PARENT = "b7ad6b7169203331"
SLOW = ("--lease", "60", "--interval", "20")
"""Terms of a scheduler that does not hear what its replicas do."""


def header(number: int) -> tuple[tuple[str, str], ...]:
    """A client's trace context, whose trace has that number."""
    return (("traceparent", f"00-{number:032x}-{PARENT}-01"), ("tracestate", "mine=1"))


def texts(response: Any) -> dict[str, str]:
    raw = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: value[4:].decode() for output, value in raw}


def request(model: str, **inputs: Any) -> Any:
    return pb.ModelInferRequest.FromString(encode_request(model, inputs or {"x": "1"}, {}))


@attrs.frozen
class Slice:
    """A span as a trace shows it."""

    process: str
    name: str
    began: float
    ended: float
    args: dict[str, Any]

    def within(self, other: Slice) -> bool:
        return other.began <= self.began < self.ended <= other.ended


@attrs.frozen
class Shown:
    """What a file shows of each request, by its id."""

    slices: dict[str, list[Slice]]
    arrows: dict[str, list[str]]
    """The processes that arrows lead through."""

    def of(self, *processes: str) -> dict[str, list[Slice]]:
        """The requests that have been in these processes, all of which recorded them whole.

        They begin and end to record at slightly different times.
        """
        return {
            id: slices
            for id, slices in self.slices.items()
            if {slice.process for slice in slices} == set(processes)
            and not any("unfinished" in slice.args for slice in slices)
        }


def shown(file: Path) -> Shown:
    events = json.loads(file.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    opened: defaultdict[str, list[Any]] = defaultdict(list)
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    arrows: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        if event["ph"] == "b":
            opened[event["id"]].append(event)
        elif event["ph"] == "e":
            begun = opened[event["id"]].pop()
            assert (begun["name"], begun["pid"]) == (event["name"], event["pid"])
            slices[event["id"]].append(
                Slice(names[event["pid"]], event["name"], begun["ts"], event["ts"], begun["args"])
            )
        elif event["ph"] in "stf":
            arrows[event["id"]].append(names[event["pid"]])
    for each in slices.values():
        each.sort(key=lambda slice: (slice.began, -slice.ended))
    return Shown(slices, arrows)


def record(output: Path, address: str, meanwhile: Callable[[], Any]) -> Shown:
    """Trace for a second, doing something again and again; waits for what it asked last."""
    words = [sys.executable, "-m", "anyserve", "trace", address, "--seconds", "1"]
    with subprocess.Popen([*words, "-o", str(output)], cwd=ROOT, stdout=subprocess.PIPE) as tracing:
        while tracing.poll() is None:
            meanwhile()
            time.sleep(0.02)
    assert tracing.returncode == 0
    return shown(output)


@pytest.fixture
def fleet_of(
    start_scheduler: Callable[..., Any], start_replica: Callable[..., Any], eventually: Any
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Starts a scheduler, and a replica for each app that is named; they know one another."""

    def start(*terms: str, **apps: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
        scheduler = start_scheduler(0, *terms)
        to = ("--scheduler", scheduler.address, "--replica-id")
        replicas = {id: start_replica(*options, *to, id) for id, options in apps.items()}
        with grpc.insecure_channel(scheduler.address) as channel:
            fleet = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
            eventually(lambda: all(id.encode() in fleet(b"", timeout=20) for id in apps))
        return scheduler, replicas

    return start


def test_a_trace_follows_a_request_that_is_handed_back_through_all_processes(
    fleet_of: Any, connect: Any, tmp_path: Path, eventually: Any
) -> None:
    twins = ("--app", "twins:app")
    scheduler, replicas = fleet_of(*SLOW, a=twins, b=twins)
    door, a = connect(scheduler.address), connect(replicas["a"].address)
    file = tmp_path / "busy"
    busy = a.stub.ModelInfer.future(request("narrow", file=str(file), seconds="60"), timeout=60)
    eventually(file.exists)
    numbers = iter(range(1, 1_000_000))
    seen = record(
        tmp_path / "fleet.json",
        scheduler.address,
        lambda: door.call("ModelInfer", request("narrow"), metadata=header(next(numbers))),
    )
    busy.cancel()

    worker = "worker twins-0 of replica b"
    moved = seen.of("scheduler", "replica a", "replica b", worker)
    assert moved
    for id, slices in moved.items():
        assert re.fullmatch("0{26}[0-9a-f]{6}", id)
        assert all(slice.args["request"] == id for slice in slices)
        assert [(slice.process, slice.name) for slice in slices] == [
            ("scheduler", "front door"),
            ("scheduler", "route"),
            ("scheduler", "send to a"),
            ("replica a", "ModelInfer"),
            ("replica a", "hand back"),
            ("scheduler", "route"),
            ("scheduler", "send to b"),
            ("replica b", "ModelInfer"),
            ("replica b", "run"),
            (worker, "narrow"),
        ]
        front, _, to_a, refused, back, _, to_b, served, run, handler = slices
        assert all(slice.within(front) for slice in slices)
        assert refused.within(to_a)
        assert back.within(to_a)
        assert handler.within(run)
        assert run.within(served)
        assert served.within(to_b)
        assert to_a.ended <= to_b.began
        assert "queue" in back.args["reason"]
        assert to_a.args["error"] == back.args["reason"]
        assert (to_a.args["delegations"], to_b.args["delegations"]) == (0, 1)
        assert 0 < to_b.args["first_answer_us"] <= to_b.ended - to_b.began
        assert "error" not in front.args
        assert seen.arrows[id] == ["scheduler", "replica a", "scheduler", "replica b", worker]


def test_a_trace_follows_what_a_handler_calls_elsewhere_and_a_request_without_header(
    fleet_of: Any, connect: Any, tmp_path: Path
) -> None:
    front, back = ("--app", "traced:front"), ("--app", "traced:back", "--in-process")
    scheduler, replicas = fleet_of(front=front, back=back)
    client = connect(replicas["front"].address)
    seen = record(
        tmp_path / "fleet.json",
        scheduler.address,
        lambda: client.call("ModelInfer", request("outer")),
    )
    worker = "worker traced-0 of replica front"
    whole = seen.of("replica front", worker, "scheduler", "replica back")
    assert whole
    for slices in whole.values():
        assert [(slice.process, slice.name) for slice in slices] == [
            ("replica front", "ModelInfer"),
            ("replica front", "run"),
            (worker, "outer"),
            ("replica front", "relay"),
            ("scheduler", "front door"),
            ("scheduler", "route"),
            ("scheduler", "send to back"),
            ("replica back", "ModelInfer"),
            ("replica back", "run"),
            ("replica back", "inner"),
        ]
        _, run, outer, relay, door, _, send, served, _, inner = slices
        assert outer.within(run)
        assert relay.within(outer)
        assert door.within(relay)
        assert served.within(send)
        assert inner.within(served)


def test_at_every_door_a_request_keeps_its_trace_and_each_hop_is_a_parent_of_its_own(
    fleet_of: Any, connect: Any
) -> None:
    scheduler, replicas = fleet_of(
        front=("--app", "traced:front", "--in-process"), back=("--app", "traced:back")
    )
    for number, door in enumerate((scheduler, *replicas.values()), 1):
        client = connect(door.address)
        found = texts(client.call("ModelInfer", request("outer"), metadata=header(number)))
        outer, inner = (FORM.fullmatch(found[name]) for name in ("outer", "inner"))
        assert outer
        assert inner
        assert outer[1] == inner[1] == f"{number:032x}"
        assert len({PARENT, outer[2], inner[2]}) == 3
        found = texts(client.call("ModelInfer", request("inner"), metadata=header(number)))
        assert found["state"] == "mine=1"
        assert f"trace_id={number:032x}" in replicas["back"].log_text()
        # What is malformed is replaced, and without a header nothing is made.
        malformed = (("traceparent", f"00-{'0' * 32}-{PARENT}-01"), ("tracestate", "mine=1"))
        found = texts(client.call("ModelInfer", request("inner"), metadata=malformed))
        assert FORM.fullmatch(found["inner"])
        assert PARENT not in found["inner"]
        assert found["state"] == ""
        assert texts(client.call("ModelInfer", request("inner")))["inner"] == ""


def test_doors_of_http_keep_a_trace_too(fleet_of: Any, ask_http: Any) -> None:
    http = ("--http", "0")
    front = ("--app", "traced:front", "--in-process", *http)
    back = ("--app", "traced:back", "--in-process", *http)
    scheduler, replicas = fleet_of(*http, front=front, back=back)
    tensor = {"name": "x", "shape": [1], "datatype": "INT32", "data": [1]}
    for number, door in enumerate((scheduler, *replicas.values()), 1):
        body = {"inputs": [tensor]}
        status, text = ask_http(door.http, "/v2/models/inner/infer", body, **dict(header(number)))
        assert status == 200
        found = {each["name"]: each["data"][0] for each in json.loads(text)["outputs"]}
        context = FORM.fullmatch(found["inner"])
        assert context
        assert context[1] == f"{number:032x}"
        assert context[2] != PARENT
        assert found["state"] == "mine=1"


def test_the_requests_of_one_stream_are_told_apart(
    fleet_of: Any, connect: Any, tmp_path: Path
) -> None:
    scheduler, _ = fleet_of(a=("--app", "twins:app", "--in-process"))
    stub = connect(scheduler.address).stub
    numbers = iter(range(1, 1_000_000))

    def ask() -> None:
        requests = [request("who")] * 3
        call = stub.ModelStreamInfer(iter(requests), metadata=header(next(numbers)), timeout=20)
        assert len(list(call)) == 3

    seen = record(tmp_path / "trace.json", scheduler.address, ask)
    whole = seen.of("scheduler", "replica a")
    for slices in whole.values():
        assert [slice.name for slice in slices] == [
            *("front door", "route", "send to a", "ModelStreamInfer", "run", "who")
        ]
    counts = Counter(id.partition("/")[0] for id in whole)
    assert 3 in counts.values()
    assert max(counts.values()) == 3
