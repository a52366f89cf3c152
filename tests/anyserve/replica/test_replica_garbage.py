"""What a request leaves to the garbage collector: its tensors would wait for that, MiB by MiB."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest
import trio

SMALL, LARGE = np.zeros(25, np.float32), np.zeros(65_536, np.float32)


@contextmanager
def garbage() -> Iterator[set[str]]:
    """Gathers the names of our classes whose objects were left in cycles by the block."""
    found: set[str] = set()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = {type(each) for each in gc.garbage}
        found |= {kind.__name__ for kind in kinds if kind.__module__.startswith("anyserve")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def infer(raw: Any, request: Any) -> None:
    raw.call("ModelInfer", request)


def stream_infer(raw: Any, request: Any) -> None:
    assert all(not reply.error_message for reply in raw.stub.ModelStreamInfer(iter([request])))


def fail(raw: Any, request: Any) -> None:
    with suppress(grpc.RpcError):
        raw.call("ModelInfer", request)


@pytest.mark.parametrize(
    "call, capability, inputs",
    [
        pytest.param(infer, "echo", {"INPUT0": SMALL}, id="small"),
        pytest.param(infer, "echo", {"INPUT0": LARGE}, id="large"),
        pytest.param(stream_infer, "repeat", {"IN": np.arange(5, dtype=np.int32)}, id="stream"),
        pytest.param(stream_infer, "echo", {"INPUT0": LARGE}, id="large in a stream"),
        pytest.param(fail, "nothing", {"INPUT0": SMALL}, id="refused"),
    ],
)
async def test_a_request_that_has_ended_leaves_nothing_to_the_garbage_collector(
    replica_here: Any,
    transport: str,
    connect: Any,
    request_of: Any,
    call: Callable[[Any, Any], None],
    capability: str,
    inputs: dict[str, Any],
):
    if transport != "trio":
        pytest.skip("grpclib's connections are made of cycles")
    async with replica_here() as (replica, _):

        def work() -> None:
            raw = connect(str(replica.address))
            for _ in range(5):
                call(raw, request_of(capability, **inputs))

        await trio.to_thread.run_sync(work)
        with garbage() as found:
            await trio.to_thread.run_sync(work)
        assert found == set()
