"""The HTTP port of a live replica: health, keys, drain."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from typing import Any

import pytest


def get(address: str, path: str, **headers: str) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_it_lives_and_is_ready(http_replica: Any) -> None:
    assert get(http_replica.http, "/health") == (200, {"status": "live"})
    assert get(http_replica.http, "/ready") == (200, {"status": "ready"})
    assert get(http_replica.http, "/nothing")[0] == 404


def test_health_needs_no_key_and_all_else_does(start_replica: Any) -> None:
    options = ("--app", "behaviours:app", "--http", "0", "--api-key", "secret")
    address = start_replica(*options).http
    assert get(address, "/health")[0] == 200
    assert get(address, "/ready")[0] == 200
    assert get(address, "/nothing")[0] == 401
    assert get(address, "/nothing", Authorization="Bearer secret")[0] == 404


def test_a_port_that_is_taken_is_said_in_one_line(http_replica: Any, start_replica: Any) -> None:
    port = http_replica.http.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"):
        start_replica("--app", "behaviours:app", "--http", port)


def test_it_ends_with_the_replica(start_replica: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--http", "0")
    connection = urllib.request.urlopen(f"http://{live.http}/health", timeout=20)
    connection.close()
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(10) == 0
