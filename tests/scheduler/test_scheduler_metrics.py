"""Real scrapes of a fleet: a scheduler and two replicas, one of which lacks much."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyserve_scheduler.fleet import Fleet, OfferView, ReplicaState, ReplicaView
from anyserve_scheduler.gateway.meter import Meter
from anyserve_scheduler.gateway.metrics import SchedulerMetrics
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from anyserve.capability import Capability
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.load import Load

Samples = dict[str, dict[tuple[str, ...], float]]


def read(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


@pytest.fixture
def scrape(ask_http: Any) -> Callable[[str], Samples]:
    """Reads what a door says of itself."""
    return lambda address: read(ask_http(address, "/metrics")[1])


@pytest.fixture
def fleet(
    start_scheduler: Any, start_replica: Any, settled: Any, eventually: Any, scrape: Any
) -> SimpleNamespace:
    scheduler = start_scheduler(0, "--http", "0")
    options = ("--app", "behaviours:app", "--http", "0", "--scheduler", scheduler.address)
    a = start_replica(*options, "--replica-id", "a")
    b = start_replica(*options, "--replica-id", "b", "--caps", "echo")
    eventually(lambda: scrape(scheduler.http)["anyserve_scheduler_replicas"]["live",] == 2)
    settled(scheduler.address)
    return SimpleNamespace(scheduler=scheduler, a=a, b=b)


def test_what_went_through_the_front_door_adds_up(
    fleet: SimpleNamespace, tmp_path: Path, ask_http: Any, eventually: Any, scrape: Any
) -> None:
    door = fleet.scheduler.http
    echoed = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]}
    stream = "/v2/models/{}/generate_stream"
    for _ in range(6):
        assert ask_http(door, "/v2/models/echo/infer", echoed)[0] == 200
    assert ask_http(door, stream.format("repeat"), {"IN": [1, 2, 3]})[0] == 200
    assert ask_http(door, stream.format("fail"), {"kind": "declared"})[0] == 403
    assert ask_http(door, "/v2/models/nothing/infer", echoed)[0] == 404
    late = {"seconds": 30, "parameters": {"timeout": 100_000}}
    assert ask_http(door, stream.format("sleep"), late)[0] == 504
    file = tmp_path / "runs"
    connection = HTTPConnection(door, timeout=20)
    connection.request("POST", stream.format("hold"), json.dumps({"file": str(file)}))
    eventually(file.exists)
    eventually(lambda: scrape(door)["anyserve_scheduler_replica_running_requests"]["a",] == 1)
    connection.close()
    eventually(lambda: not file.exists())
    # One that a replica lacks and gives to the scheduler.
    assert ask_http(fleet.b.http, stream.format("repeat"), {"IN": [1]})[0] == 200

    found = scrape(door)
    counts = found["anyserve_scheduler_requests_total"]
    assert {key: count for key, count in counts.items() if count} == {
        ("echo", "answered"): 6,
        ("repeat", "answered"): 2,
        ("fail", "failed"): 1,
        ("other", "refused"): 1,
        ("sleep", "expired"): 1,
        ("hold", "cancelled"): 1,
    }
    assert found["anyserve_scheduler_decisions_total"][()] == 12
    assert found["anyserve_scheduler_request_seconds_count"]["echo",] == 6
    assert found["anyserve_scheduler_first_response_seconds_count"]["echo",] == 6
    assert found["anyserve_scheduler_between_responses_seconds_count"]["repeat",] == 2
    assert found["anyserve_scheduler_in_flight_requests"][()] == 0
    assert set(found["anyserve_scheduler_replica_slots"]) == {("a",), ("b",)}
    a, b = scrape(fleet.a.http), scrape(fleet.b.http)
    served = [each["anyserve_requests_total"]["echo", "answered"] for each in (a, b)]
    assert sum(served) == 6
    assert b["anyserve_relayed_requests_total"][()] == 1
    assert b["anyserve_link_up"][()] == 1
    assert b["anyserve_link_reconnects_total"][()] == 0


def view(number: int) -> ReplicaView:
    load = Load(running=1, queued=2, slots=4, expected_wait=0.0, tokens_per_second=0.5)
    offers = {
        name: OfferView(Capability(name), load, queue_limit=8, decoupled=True)
        for name in ("decode", "embedding")
    }
    return ReplicaView(f"r{number:05}", number, "x:1", ReplicaState.LIVE, offers, 0.0)


def test_any_number_of_replicas_has_a_bounded_number_of_labels() -> None:
    fleet = Fleet.of(view(number) for number in range(1000))
    ways: Any = SimpleNamespace(
        registry=SimpleNamespace(fleet=lambda: fleet),
        in_flight=0,
        unserved=[],
        decisions=0,
        retried=0,
        delegated=0,
        resumed=0,
    )
    found = read(generate_latest(SchedulerMetrics(ways, Meter())).decode())
    running = found["anyserve_scheduler_replica_running_requests"]
    assert len(running) == MOST_LABELS
    assert running["r00000",] == 2
    assert sum(running.values()) == 2000
    assert running[OTHER,] == 2 * (1000 - (MOST_LABELS - 1))
    assert found["anyserve_scheduler_replicas"]["live",] == 1000
