"""The scheduler's console: its fleet in a browser, and a request at a replica that is cancelled."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import attrs
import grpc
import numpy as np
import pytest
from playwright.sync_api import expect
from tritonclient.grpc import InferenceServerClient, InferInput

SCRIPT = {"x-anyserve-console": "1"}
"""The header of what the page's script asks."""


@attrs.frozen
class Fleet:
    """A scheduler, and two replicas that say what they are told to."""

    scheduler: Any
    replicas: list[Any]


@pytest.fixture
def fleet(start_scheduler: Callable[..., Any], start_replica: Callable[..., Any]) -> Fleet:
    scheduler = start_scheduler(0, "--http", "0")
    to = ("--scheduler", scheduler.address, "--replica-id")
    names = ("left", "right")
    return Fleet(scheduler, [start_replica("--app", "scripted:create_app", *to, n) for n in names])


@contextmanager
def chat(fleet: Fleet, pieces: list[str]) -> Iterator[http.client.HTTPResponse]:
    """A chat that does not end by itself."""
    script = json.dumps({"pieces": pieces, "after": "wait"})
    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": script}]}
    headers = {"x-request-id": "chat-1", "x-request-timeout": "60"}
    with closing(http.client.HTTPConnection(fleet.scheduler.http, timeout=20)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        with connection.getresponse() as answer:
            yield answer


def test_it_shows_the_fleet_and_cancels_at_a_replica(
    fleet: Fleet, open_console: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    page = open_console(fleet.scheduler.http)
    expect(page.locator(".replica h3")).to_have_text(["left", "right"], timeout=20_000)
    expect(page.locator("#who")).to_have_text(f"scheduler on {fleet.scheduler.address}")
    expect(page.locator("#tree")).to_contain_text("gateway")
    page.get_by_label("Message").fill("These words come back one by one.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer")).to_have_text("These words come back one by one.")
    with chat(fleet, ["Paris."]) as answer:
        row = page.locator("#requests li")
        expect(row).to_contain_text("decode")
        expect(row).to_contain_text(re.compile("at (left|right)"))
        expect(row.locator(".when")).to_have_text(re.compile("^[3-9]"), timeout=20_000)
        picture = request.config.getoption("--console-picture")
        if picture is not None:
            page.set_viewport_size({"width": 1180, "height": 1000})
            page.screenshot(path=picture, animations="disabled")
            assert Path(picture).stat().st_size < 200_000
        row.get_by_role("button").click()
        assert "cancelled at the console" in answer.read().decode()
    expect(row).to_have_count(0)
    expect(page.locator("#in-flight")).to_have_text("0")


def test_a_call_at_a_replica_is_cancelled_and_its_handler_ends(
    start_scheduler: Callable[..., Any],
    start_replica: Callable[..., Any],
    ask_http: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    scheduler = start_scheduler(0, "--http", "0")
    to = ("--scheduler", scheduler.address, "--replica-id", "one")
    start_replica("--app", "behaviours:app", *to)
    path = tmp_path / "running"
    tensor = InferInput("file", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([str(path).encode()], dtype=np.object_))
    answers: Queue[Any] = Queue()
    asked = urllib.request.Request(f"http://{scheduler.http}/console/events", headers=SCRIPT)
    with (
        InferenceServerClient(scheduler.address) as client,
        urllib.request.urlopen(asked, timeout=20) as events,
    ):
        until(events, lambda seen: "hold" in running(seen))
        client.async_infer(
            "hold", [tensor], lambda result, error: answers.put(error), request_id="mine"
        )
        seen = until(events, lambda seen: running(seen).get("hold") == 1 and path.exists())
        ((number, request),) = [(row["number"], row["request"]) for row in seen["requests"]]
        assert (request["id"], request["capability"]) == ("mine", "hold")
        assert (request["state"], request["place"]) == ("running", "one")
        cancel = {"number": number}
        assert ask_http(scheduler.http, "/console/cancel", cancel, **SCRIPT)[0] == 204
        error = answers.get(timeout=20)
        assert error.status() == str(grpc.StatusCode.CANCELLED)
        assert error.message() == "cancelled at the console"
        until(events, lambda seen: not seen["requests"] and running(seen)["hold"] == 0)
    assert not path.exists()
    metrics = ask_http(scheduler.http, "/metrics")[1]
    assert re.search(r"requests_total{.*hold.*cancelled.*} 1\.0", metrics)


def running(snapshot: Any) -> dict[str, int]:
    """How many requests run of each capability."""
    return {
        each["name"]: each["running"]
        for replica in snapshot["replicas"]
        for each in replica["capabilities"]
    }


def until(events: Any, is_so: Callable[[Any], bool]) -> Any:
    """The first snapshot of which something is so."""
    for line in events:
        if line.startswith(b"data: ") and is_so(snapshot := json.loads(line[6:])):
            return snapshot
    raise AssertionError("the snapshots have ended")
