"""The console over HTTP: who may see it, what it shows, and what it cancels."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from anyserve.http.console.door import MOST_VIEWERS
from anyserve.http.console.guard import MARK, Guard
from anyserve.http.request import HttpRequest

MARKED = {MARK: "1"}


@contextmanager
def asking(
    address: str, path: str, body: Any = None, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """An answer to a GET, or with a body to a POST."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request(
            "GET" if body is None else "POST",
            path,
            None if body is None else json.dumps(body),
            named,
        )
        with connection.getresponse() as answer:
            yield answer


def status_of(address: str, path: str, body: Any = None, **headers: str) -> int:
    with asking(address, path, body, **headers) as answer:
        answer.read()
        return answer.status


def snapshots(answer: http.client.HTTPResponse) -> Iterator[Any]:
    """What the page is fed."""
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@contextmanager
def looking(address: str, **headers: str) -> Iterator[Iterator[Any]]:
    """Snapshots as they come."""
    with asking(address, "/console/events", **MARKED, **headers) as answer:
        assert answer.status == 200
        yield snapshots(answer)


def shown(found: Iterator[Any], name: str) -> Any:
    """The request that is identified so, once a snapshot has it."""
    for snapshot in found:
        for row in snapshot["requests"]:
            if row["request"]["id"].partition("#")[0] == name:
                return row
    raise AssertionError("the snapshots have ended")


def idle(found: Iterator[Any], name: str) -> None:
    """Wait until no handler of the capability runs."""
    for snapshot in found:
        (replica,) = snapshot["replicas"]
        if any(not each["running"] for each in replica["capabilities"] if each["name"] == name):
            return
    raise AssertionError("the snapshots have ended")


def infer(client: InferenceServerClient, capability: str, path: Path, name: str) -> Queue[Any]:
    """Ask by gRPC; where what comes of it is put."""
    tensor = InferInput("file", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([str(path).encode()], dtype=np.object_))
    answers: Queue[Any] = Queue()
    client.async_infer(
        capability,
        [tensor],
        request_id=name,
        callback=lambda result, error: answers.put(error or result),
    )
    return answers


# Who may see it.


@pytest.mark.parametrize(
    ("host", "has_keys", "headers", "status"),
    [
        ("127.0.0.1", False, {"host": "localhost:80"}, None),
        ("0.0.0.0", False, {"host": "localhost:80"}, 403),
        ("0.0.0.0", True, {"host": "server.example"}, None),
        ("127.0.0.1", False, {"host": "localhost:80", "origin": "http://localhost:80"}, None),
        ("127.0.0.1", False, {"host": "localhost:80", "origin": "http://localhost:81"}, 403),
        ("0.0.0.0", True, {"host": "server.example", "origin": "https://evil.example"}, 403),
        ("0.0.0.0", True, {"host": "server.example", "origin": "null"}, 403),
        ("0.0.0.0", True, {"host": "server.example", "origin": "http://[::1"}, 403),
    ],
)
def test_a_script_is_refused_unless_the_page_is_the_consoles_own(
    host: str, has_keys: bool, headers: dict[str, str], status: int | None
) -> None:
    request = HttpRequest("GET", "/console/events", headers={**headers, **MARKED})
    refusal = Guard(host, has_keys).script(request)
    assert (None if refusal is None else refusal.status) == status


def test_the_page_has_a_strict_policy_and_asks_for_nothing_elsewhere(http_replica: Any) -> None:
    with asking(http_replica.http, "/console") as answer:
        page = answer.read().decode()
        policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page
    assert "https://" not in page
    for name in ("main.js", "console.css", "icon.svg"):
        assert f"/console/{name}" in page
        assert status_of(http_replica.http, f"/console/{name}") == 200


def test_a_name_that_was_led_here_sees_nothing(http_replica: Any) -> None:
    for path in ("/console", "/console/main.js", "/console/events"):
        assert status_of(http_replica.http, path, host="evil.example", **MARKED) == 403
    cancel = {"number": 1}
    assert status_of(http_replica.http, "/console/cancel", cancel, host="a.b", **MARKED) == 403


def test_what_another_page_could_send_is_refused(http_replica: Any) -> None:
    address = http_replica.http
    assert status_of(address, "/console/events") == 403
    assert status_of(address, "/console/cancel", {"number": 1}) == 403
    other = "https://evil.example"
    assert status_of(address, "/console/events", origin=other, **MARKED) == 403


def test_origins_that_may_ask_may_not_look(start_replica: Any) -> None:
    address = start_replica("--app", "behaviours:app", "--http", "0", "--cors", "*").http
    other = "https://evil.example"
    assert status_of(address, "/v1/models", origin=other) == 200
    assert status_of(address, "/console/events", origin=other, **MARKED) == 403
    assert status_of(address, "/console/cancel", {"number": 1}, origin=other, **MARKED) == 403


def test_with_keys_all_but_the_page_needs_one(start_replica: Any) -> None:
    options = ("--app", "behaviours:app", "--http", "0", "--http-host", "0.0.0.0")
    address = start_replica(*options, "--api-key", "secret").http
    local = f"127.0.0.1:{address.rpartition(':')[2]}"
    assert status_of(local, "/console") == 200
    assert status_of(local, "/console/events", **MARKED) == 401
    assert status_of(local, "/console/cancel", {"number": 1}, **MARKED) == 401
    with looking(local, authorization="Bearer secret") as found:
        assert next(found)["kind"] == "replica"


def test_on_an_open_address_without_keys_there_is_none(start_replica: Any) -> None:
    options = ("--app", "behaviours:app", "--http", "0", "--http-host", "0.0.0.0")
    local = f"127.0.0.1:{start_replica(*options).http.rpartition(':')[2]}"
    assert status_of(local, "/console") == 403
    assert status_of(local, "/console/events", **MARKED) == 403
    assert status_of(local, "/v2") == 200


def test_so_many_look_and_no_more(http_replica: Any) -> None:
    connections = []
    try:
        for _ in range(MOST_VIEWERS):
            connection = http.client.HTTPConnection(http_replica.http, timeout=20)
            connections.append(connection)
            connection.request("GET", "/console/events", headers=MARKED)
            assert connection.getresponse().status == 200
        assert status_of(http_replica.http, "/console/events", **MARKED) == 503
    finally:
        for connection in connections:
            connection.close()


# What it shows and cancels.


def test_a_snapshot_has_capabilities_and_actors(http_replica: Any) -> None:
    with looking(http_replica.http) as found:
        first, second = next(found), next(found)
    assert first["address"] == http_replica.address
    assert second["uptime"] > first["uptime"]
    (replica,) = first["replicas"]
    capabilities = {each["name"]: each for each in replica["capabilities"]}
    assert capabilities["hold"]["slots"] == 2
    assert "max_context=2048" in capabilities["add"]["about"]
    assert {"dispatcher", "workers", "http"} <= {node["name"] for node in first["tree"]["children"]}


def test_a_running_call_is_cancelled_for_its_grpc_client(http_replica: Any, tmp_path: Path) -> None:
    path = tmp_path / "running"
    with (
        InferenceServerClient(http_replica.address) as client,
        looking(http_replica.http) as found,
    ):
        answers = infer(client, "hold", path, "shown-running")
        row = shown(found, "shown-running")
        request = row["request"]
        assert request["capability"] == "hold"
        assert request["state"] == "running"
        assert request["place"] == "behaviours-0"
        assert request["remaining"] is None
        cancel = {"number": row["number"]}
        assert status_of(http_replica.http, "/console/cancel", cancel, **MARKED) == 204
        error = answers.get(timeout=20)
        assert isinstance(error, InferenceServerException)
        assert error.status() == str(grpc.StatusCode.CANCELLED)
        assert error.message() == "cancelled at the console"
        assert status_of(http_replica.http, "/console/cancel", cancel, **MARKED) == 404
        idle(found, "hold")
        assert not path.exists()


def test_a_call_that_waits_is_cancelled_in_its_queue(http_replica: Any, tmp_path: Path) -> None:
    with (
        InferenceServerClient(http_replica.address) as client,
        looking(http_replica.http) as found,
    ):
        first = infer(client, "hold_queued", tmp_path / "first", "shown-first")
        ahead = shown(found, "shown-first")
        second = infer(client, "hold_queued", tmp_path / "second", "shown-second")
        row = shown(found, "shown-second")
        assert row["request"]["state"] == "queued"
        assert row["request"]["place"] == ""
        for each, answers in ((row, second), (ahead, first)):
            cancel = {"number": each["number"]}
            assert status_of(http_replica.http, "/console/cancel", cancel, **MARKED) == 204
            assert answers.get(timeout=20).status() == str(grpc.StatusCode.CANCELLED)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("body", [{}, {"number": "1"}, {"number": 1, "more": 2}, [], "x", 10**30])
def test_what_is_no_number_is_refused(http_replica: Any, body: Any) -> None:
    assert status_of(http_replica.http, "/console/cancel", body, **MARKED) == 400
