"""Handlers that call other capabilities: in process, and in a worker process."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from anyserve.client import Client, open_client
from anyserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
)
from anyserve.replica.calls import MAX_OPEN
from anyserve.testing import open_test_client

APPS = str(Path(__file__).parents[1] / "apps")


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of its own for each test."""
    monkeypatch.syspath_prepend(APPS)
    sys.modules.pop("callers", None)
    import callers

    yield callers
    sys.modules.pop("callers", None)


@pytest.fixture(params=["in this process", "in a worker"])
async def client(request: Any, callers: Any, start_replica: Any) -> AsyncIterator[Any]:
    if request.param == "in a worker":
        live = await trio.to_thread.run_sync(start_replica, "--app", "callers:app")
        async with open_client(live.address) as client:
            yield client
    else:
        async with open_test_client(callers.app) as test_client:
            yield test_client


async def test_a_handler_calls_another_capability_with_tensors_of_any_size(client: Any) -> None:
    for size in (1, 1 << 19):
        array = np.arange(size, dtype=np.int64)
        answer = await client.infer("relay", {"x": array}, {"to": "echo"})
        np.testing.assert_array_equal(answer["x"], array)


async def test_a_blocking_handler_calls_from_its_thread(client: Any) -> None:
    answer = await client.infer("blocking", {"x": [7]})
    assert answer["x"].tolist() == [7]


async def test_what_is_called_has_the_request_id_of_its_caller(client: Any) -> None:
    answer = await client.infer("relay", {"x": [1]}, {"to": "echo"})
    assert answer.parameters["id"] == answer.parameters["callers_id"]


async def test_a_stream_is_read_to_its_end_whatever_its_length(client: Any) -> None:
    for n in (0, 1, 64, 300):
        answer = await client.infer("total", {"n": [n]})
        assert (answer["sum"][0], answer["taken"][0]) == (sum(range(n)), n)


async def test_a_stream_that_is_left_early_ends(client: Any) -> None:
    answer = await client.infer("total", {"n": [10**9]}, {"most": 100})
    assert answer["taken"][0] == 100


async def test_a_stream_that_its_handler_leaves_open_ends_with_the_handler(client: Any) -> None:
    await client.infer("careless", {"x": [1]})
    with trio.fail_after(10):
        while b"endless ended" not in (await client.infer("events", {}))["events"].tolist():
            pass


async def test_the_error_of_what_was_called_is_the_error_of_the_call(client: Any) -> None:
    with pytest.raises(PermissionDenied, match="not for you"):
        await client.infer("relay", {"x": [1]}, {"to": "refuse"})


async def test_what_nobody_offers_is_not_found(client: Any) -> None:
    with pytest.raises(NotFound, match="nothing_like_it"):
        await client.infer("relay", {"x": [1]}, {"to": "nothing_like_it"})


@pytest.mark.parametrize("way", ["relay", "relay_stream"])
async def test_a_call_may_name_a_version(client: Any, way: str) -> None:
    for asked in ("", "2"):
        answer = await client.infer(way, {}, {"to": "aged", "version": asked})
        assert answer["version"].tolist() == [b"2"]
    with pytest.raises(NotFound, match="version 1"):
        await client.infer(way, {}, {"to": "aged", "version": "1"})
    with pytest.raises(InvalidArgument, match="version 'second'"):
        await client.infer(way, {}, {"to": "aged", "version": "second"})


async def test_several_responses_to_a_call_are_refused(client: Any) -> None:
    with pytest.raises(Unimplemented, match="stream"):
        await client.infer("relay", {"n": [3]}, {"to": "numbers"})


async def test_the_deadline_goes_along(client: Any) -> None:
    with trio.fail_after(20):
        answer = await client.infer("relay", {"x": [1]}, {"to": "remaining"})
    assert 0 < answer["seconds"] < 20.1


async def test_a_loop_of_calls_is_refused_at_its_depth(client: Any) -> None:
    with pytest.raises(FailedPrecondition, match="8 deep"):
        await client.infer("again", {"x": [1]})
    if isinstance(client, Client):
        events = (await client.infer("events", {}))["events"].tolist()
        assert events == [b"again"] * 9  # the client's own, and eight calls


async def test_a_handler_has_no_more_calls_open_than_the_limit(client: Any) -> None:
    await client.infer("crowd", {"n": [MAX_OPEN]})
    with pytest.raises(ResourceExhausted, match="64 calls open"):
        await client.infer("crowd", {"n": [MAX_OPEN + 1]})
    await client.infer("often", {"n": [MAX_OPEN]})


async def test_a_call_that_waits_for_its_own_slot_ends_by_its_deadline(client: Any) -> None:
    with pytest.raises((DeadlineExceeded, trio.TooSlowError)), trio.fail_after(0.5):
        await client.infer("alone", {"x": [1]})


async def test_the_end_of_the_caller_ends_what_it_called(client: Any) -> None:
    async def told() -> list[bytes]:
        found: list[bytes] = (await client.infer("events", {}))["events"].tolist()
        return found

    async def ask() -> None:
        await client.infer("relay", {"x": [1]}, {"to": "hold"})

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while b"held" not in await told():
                pass
            nursery.cancel_scope.cancel()
        while b"let go" not in await told():
            pass
