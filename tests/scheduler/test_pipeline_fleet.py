"""Handlers that call what only another replica of the fleet has: the example of a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
from tritonclient.grpc import InferenceServerClient

from anyserve.capability import Capability
from anyserve.client import Result, open_client
from anyserve.errors import FailedPrecondition, NotFound, Unavailable
from anyserve.replica.calls import DEPTH, HandlerRequests
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Asked, Call


async def ask(address: str, capability: str, inputs: Any, values: Any = None) -> Result:
    with trio.fail_after(20):
        async with open_client(address) as client:
            return await client.infer(capability, inputs, values)


def described(address: str) -> Result | None:
    """The answer; None before the replicas are registered."""
    try:
        return trio.run(ask, address, "describe", {"text": "the cat saw the dog"})
    except (NotFound, Unavailable):
        return None


@pytest.mark.parametrize("where", [(), ("--in-process",)], ids=["workers", "in process"])
def test_a_pipeline_runs_over_two_replicas_asked_by_either_door(
    start_scheduler: Any, start_replica: Any, eventually: Any, where: tuple[str, ...]
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, *where, "--replica-id")
    front = start_replica("--app", "examples.pipeline:front", *to, "front")
    start_replica("--app", "examples.pipeline:back", *to, "back")
    for address in (front.address, scheduler.address):
        summary = eventually(lambda address=address: described(address))["summary"][0]
        assert summary == b"the 2, cat 1, saw 1, dog 1"


def test_a_handler_calls_the_version_that_it_names_wherever_that_is(
    start_scheduler: Any, start_replica: Any, settled: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--replica-id")
    a = start_replica("--app", "callers:app", "--app", "variants:first", *to, "a")
    start_replica("--app", "variants:second", "--in-process", *to, "b")
    with InferenceServerClient(scheduler.address) as client:
        eventually(lambda: client.is_model_ready("relay") and client.is_model_ready("right"))
    settled(scheduler.address)
    inputs = {"x": np.zeros((1, 2), np.int32)}
    for version in "123":
        found = trio.run(ask, a.address, "relay", inputs, {"to": "item", "version": version})
        assert found["version"].tolist() == [version.encode()]
    with pytest.raises(NotFound, match="version 4"):
        trio.run(ask, a.address, "relay", inputs, {"to": "item", "version": "4"})


def test_the_depth_of_calls_is_counted_where_a_client_gives_it() -> None:
    """Depth travels as metadata: nothing lowers it on the way from one replica to the next."""
    ends: list[Any] = []

    class Answered:
        def on_reply(self, reply: Any) -> None: ...

        def on_end(self, error: Any) -> None:
            ends.append(error)

    for depth, kind in (("7", NotFound), ("8", FailedPrecondition), ("x", FailedPrecondition)):
        parent = Call(Capability("mine"), b"", metadata={DEPTH: depth})
        asked = Asked(b"\x0a\x05other", (), (), once=True)
        HandlerRequests(Dispatcher()).request(parent, asked, Answered()).start()
        assert isinstance(ends[-1], kind)
