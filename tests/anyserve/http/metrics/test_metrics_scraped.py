"""Real scrapes of a replica whose traffic is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, dict[tuple[str, ...], float]]


@pytest.fixture
def generate(ask_http: Any) -> Callable[..., int]:
    """Asks for a stream; gives its status."""

    def ask(address: str, capability: str, **body: Any) -> int:
        status: int = ask_http(address, f"/v2/models/{capability}/generate_stream", body)[0]
        return status

    return ask


@pytest.fixture
def scrape(ask_http: Any) -> Callable[[str], Samples]:
    """Reads what a door says of itself: values by the name of the sample and its labels."""

    def read(address: str) -> Samples:
        status, text = ask_http(address, "/metrics")
        assert status == 200
        found: Samples = {}
        for family in text_string_to_metric_families(text):
            assert family.documentation
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found

    return read


def outcomes(found: Samples, capability: str) -> dict[str, float]:
    """Those that are not 0."""
    counts = found["anyserve_requests_total"]
    return {how: count for (name, how), count in counts.items() if name == capability and count}


@pytest.fixture
def live(start_replica: Any) -> Any:
    return start_replica("--app", "behaviours:app", "--http", "0")


def test_what_was_served_adds_up(
    live: Any, tmp_path: Path, ask_http: Any, eventually: Any, generate: Any, scrape: Any
) -> None:
    door = live.http
    echoed = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]}
    for _ in range(5):
        assert ask_http(door, "/v2/models/echo/infer", echoed)[0] == 200
    for _ in range(2):
        assert generate(door, "fail", kind="declared") == 403
    assert generate(door, "repeat", IN=[1, 2, 3, 4]) == 200
    assert generate(door, "sleep", seconds=30, parameters={"timeout": 50_000}) == 504
    assert generate(door, "accumulate", INPUT=1, parameters={"sequence_id": 7}) == 400
    assert ask_http(door, "/v2/models/nothing/infer", echoed)[0] == 404
    file = tmp_path / "runs"
    connection = HTTPConnection(door, timeout=20)
    connection.request("POST", "/v2/models/hold/generate_stream", json.dumps({"file": str(file)}))
    eventually(file.exists)
    assert scrape(door)["anyserve_running_requests"]["hold",] == 1
    assert scrape(door)["anyserve_in_flight_requests"][()] == 1
    connection.close()
    eventually(lambda: not file.exists())
    eventually(lambda: scrape(door)["anyserve_running_requests"]["hold",] == 0)

    found = scrape(door)
    assert outcomes(found, "echo") == {"answered": 5}
    assert outcomes(found, "fail") == {"failed": 2}
    assert outcomes(found, "repeat") == {"answered": 1}
    assert outcomes(found, "sleep") == {"expired": 1}
    assert outcomes(found, "accumulate") == {"refused": 1}
    assert outcomes(found, "hold") == {"cancelled": 1}
    assert found["anyserve_requests_turned_away_total"][()] == 1
    assert found["anyserve_in_flight_requests"][()] == 0
    for capability, requests in (("echo", 5), ("repeat", 1), ("hold", 1), ("accumulate", 0)):
        for part in ("queue", "service"):
            assert found[f"anyserve_{part}_seconds_count"][capability,] == requests
    assert found["anyserve_first_response_seconds_count"]["echo",] == 5
    assert found["anyserve_first_response_seconds_count"]["hold",] == 0
    assert found["anyserve_between_responses_seconds_count"]["echo",] == 0
    assert found["anyserve_between_responses_seconds_count"]["repeat",] == 3
    assert found["anyserve_output_tokens_total"]["repeat",] == 4
    assert ("echo",) not in found["anyserve_output_tokens_total"]
    assert found["anyserve_slots"]["hold",] == 2
    assert found["anyserve_ready"]["echo",] == 1
    assert found["process_resident_memory_bytes"][()] > 0
    assert "anyserve_link_up" not in found


def test_the_restart_of_a_worker_is_counted(
    live: Any, eventually: Any, generate: Any, scrape: Any
) -> None:
    assert scrape(live.http)["anyserve_worker_restarts_total"]["behaviours-0",] == 0
    assert generate(live.http, "crash") == 503
    eventually(lambda: scrape(live.http)["anyserve_ready"]["echo",])
    found = scrape(live.http)
    assert found["anyserve_worker_restarts_total"]["behaviours-0",] == 1
    assert outcomes(found, "crash") == {"failed": 1}


def test_it_is_scraped_by_many_at_once_and_while_it_drains(
    live: Any, tmp_path: Path, ask_http: Any, eventually: Any, generate: Any, scrape: Any
) -> None:
    file = tmp_path / "waits"
    with ThreadPoolExecutor(9) as threads:
        waits = threads.submit(generate, live.http, "until", file=str(file))
        eventually(file.exists)
        for found in threads.map(scrape, [live.http] * 24):
            assert found["anyserve_running_requests"]["until",] == 1
        live.process.terminate()
        eventually(lambda: ask_http(live.http, "/ready")[0] == 503)
        assert generate(live.http, "repeat", IN=[1]) == 503
        found = scrape(live.http)
        assert found["anyserve_in_flight_requests"][()] == 1
        assert found["anyserve_requests_turned_away_total"][()] == 1
        file.unlink()
        assert waits.result(20) == 200
    assert live.process.wait(20) == 0


def test_a_key_guards_the_metrics_too(start_replica: Any, ask_http: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--http", "0", "--api-key", "secret")
    assert ask_http(live.http, "/metrics")[0] == 401
    assert ask_http(live.http, "/metrics", authorization="Bearer secret")[0] == 200


def test_tokens_are_counted_as_engines_tell_them(
    scripted_replica: Any, ask_http: Any, scrape: Any
) -> None:
    door = scripted_replica.http
    path = "/v2/models/decode/generate"
    for stream in (True, False):
        before = scrape(door)
        body = {"text_input": "one two three", "max_tokens": 5, "stream": stream}
        status, text = ask_http(door, path + ("_stream" if stream else ""), body)
        assert status == 200
        last = json.loads(text.split("data: ")[-1])
        found = scrape(door)
        for name, told in (("prompt", "input"), ("output", "output")):
            counts = [each[f"anyserve_{name}_tokens_total"]["decode",] for each in (before, found)]
            assert counts[1] - counts[0] == last[f"num_{told}_tokens"] > 1
