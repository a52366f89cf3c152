"""HTTP in a fleet: the scheduler's door, and a replica that hands on what it does not serve."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tritonclient.http as triton


@attrs.frozen
class Fleet:
    """A scheduler, a replica that serves all behaviours, and one that serves `echo` alone."""

    scheduler: Any
    a: Any
    b: Any


@pytest.fixture
def fleet(
    start_scheduler: Any, start_replica: Any, settled: Any, ask_http: Any, eventually: Any
) -> Fleet:
    scheduler = start_scheduler(0, "--http", "0")
    options = ("--app", "behaviours:app", "--http", "0", "--scheduler", scheduler.address)
    a = start_replica(*options, "--replica-id", "a")
    b = start_replica(*options, "--replica-id", "b", "--caps", "echo")
    eventually(lambda: ask_http(scheduler.http, "/ready")[0] == 200)
    eventually(lambda: ask_http(scheduler.http, "/v2/models/repeat/ready")[0] == 200)
    settled(scheduler.address)
    return Fleet(scheduler, a, b)


def outputs(text: str) -> list[int]:
    """What an event stream of `repeat` has."""
    return [json.loads(event[6:])["OUT"] for event in text.split("\n\n") if event]


def test_the_fleet_is_served_by_http_too(
    fleet: Fleet, tmp_path: Path, ask_http: Any, eventually: Any
) -> None:
    for address in (fleet.scheduler.http, fleet.b.http):
        value = np.arange(100_000, dtype=np.int64)
        given = triton.InferInput("INPUT0", list(value.shape), "INT64")
        given.set_data_from_numpy(value)
        with triton.InferenceServerClient(address) as client:
            result = client.infer("fragile", [given])
            assert np.array_equal(result.as_numpy("INPUT0"), value)
        inputs = [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [7]}]
        status, text = ask_http(address, "/v2/models/repeat/infer", {"inputs": inputs})
        assert (status, json.loads(text)["outputs"][0]["data"]) == (200, [7])
        status, text = ask_http(address, "/v2/models/nothing/infer", {"inputs": []})
        assert (status, "nothing" in json.loads(text)["error"]) == (404, True)
    index = ask_http(fleet.scheduler.http, "/v2/repository/index", {})[1]
    assert {"echo", "repeat"} <= {each["name"] for each in json.loads(index)}

    # A stream, what is wrong with one by its status, and a client that goes.
    door = fleet.scheduler.http
    status, text = ask_http(door, "/v2/models/repeat/generate_stream", {"IN": list(range(300))})
    assert (status, outputs(text)) == (200, list(range(300)))
    status, text = ask_http(door, "/v2/models/fail/generate_stream", {"kind": "declared"})
    assert (status, json.loads(text)["error"]) == (403, "not for you")
    file = tmp_path / "runs"
    connection = HTTPConnection(door, timeout=20)
    body = json.dumps({"file": str(file)})
    connection.request("POST", "/v2/models/hold/generate_stream", body)
    eventually(file.exists)
    connection.close()
    eventually(lambda: not file.exists())


def test_a_slow_reader_holds_a_handler_behind_the_door(
    fleet: Fleet, tmp_path: Path, eventually: Any
) -> None:
    file = tmp_path / "given"
    connection = HTTPConnection(fleet.scheduler.http, timeout=20)
    body = json.dumps({"file": str(file), "size": 100_000})
    connection.request("POST", "/v2/models/flood/generate_stream", body)
    eventually(lambda: file.exists() and file.read_text())
    last = ""
    while (given := file.read_text()) != last:
        last = given
        time.sleep(0.5)
    assert int(last or 0) < 400
    connection.close()


def test_a_scheduler_that_drains_answers_what_is_in_flight(fleet: Fleet) -> None:
    connection = HTTPConnection(fleet.scheduler.http, timeout=20)
    body = json.dumps({"IN": [1, 2], "pause": 1.5})
    connection.request("POST", "/v2/models/repeat/generate_stream", body)
    with connection.getresponse() as answer:
        first = answer.readline() + answer.readline()
        fleet.scheduler.process.terminate()
        assert outputs((first + answer.read()).decode()) == [1, 2]
    connection.close()
    assert fleet.scheduler.process.wait(15) == 0
