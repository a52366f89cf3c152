"""The HTTP port of a live replica: health, keys, drain."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest


def test_it_lives_and_is_ready(http_replica: Any, ask_http: Any) -> None:
    for path, state in (("/health", "live"), ("/ready", "ready")):
        status, text = ask_http(http_replica.http, path)
        assert (status, json.loads(text)) == (200, {"status": state})
    assert ask_http(http_replica.http, "/nothing")[0] == 404


def test_health_needs_no_key_and_all_else_does(start_replica: Any, ask_http: Any) -> None:
    options = ("--app", "behaviours:app", "--http", "0", "--api-key", "secret")
    address = start_replica(*options).http
    assert ask_http(address, "/health")[0] == 200
    assert ask_http(address, "/ready")[0] == 200
    assert ask_http(address, "/nothing")[0] == 401
    assert ask_http(address, "/nothing", authorization="Bearer secret")[0] == 404


def test_a_port_that_is_taken_is_said_in_one_line(http_replica: Any, start_replica: Any) -> None:
    port = http_replica.http.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"):
        start_replica("--app", "behaviours:app", "--http", port)


def test_it_ends_with_the_replica(start_replica: Any, ask_http: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--http", "0")
    assert ask_http(live.http, "/health")[0] == 200
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(10) == 0
