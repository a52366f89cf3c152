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

CODE = grpc.StatusCode
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


def give_up(raw: Any, request: Any) -> None:
    """Cancel a request that runs, in a call of its own and in a stream, and let one expire.

    The connection keeps order: what is called later is answered after the cancel was read.
    """
    echo = scaled_down(request)
    unary = raw.stub.ModelInfer.future(request, timeout=30)
    raw.call("ModelInfer", echo)
    unary.cancel()
    raw.call("ModelInfer", echo)
    stream = raw.stub.ModelStreamInfer(iter([echo, request, request]), timeout=30)
    next(stream)
    stream.cancel()
    raw.call("ModelInfer", echo)
    assert raw.refusal("ModelInfer", request, timeout=0.05).code is CODE.DEADLINE_EXCEEDED
    request.parameters["timeout"].int64_param = 1_000
    assert raw.refusal("ModelInfer", request).code is CODE.DEADLINE_EXCEEDED


def scaled_down(request: Any) -> Any:
    """The same request for `echo`, which waits for nothing."""
    echo = type(request)()
    echo.CopyFrom(request)
    echo.model_name = "echo"
    return echo


def err(raw: Any, request: Any) -> None:
    """A method that answers too often, a handler that fails, and no message at all."""
    assert raw.refusal("ModelInfer", request).code is CODE.UNIMPLEMENTED
    request.model_name = "fragile"
    request.ClearField("raw_input_contents")
    assert raw.refusal("ModelInfer", request).code is CODE.INVALID_ARGUMENT
    answers = raw.stub.ModelStreamInfer(iter([request, request]), timeout=30)
    assert all(answer.error_message for answer in answers)
    method = raw.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError, match="no ModelInferRequest"):
        method(b"\xff", timeout=30)


@pytest.mark.parametrize(
    "call, capability, inputs",
    [
        pytest.param(infer, "echo", {"INPUT0": SMALL}, id="small"),
        pytest.param(infer, "echo", {"INPUT0": LARGE}, id="large"),
        pytest.param(stream_infer, "repeat", {"IN": np.arange(5, dtype=np.int32)}, id="stream"),
        pytest.param(stream_infer, "echo", {"INPUT0": LARGE}, id="large in a stream"),
        pytest.param(fail, "nothing", {"INPUT0": SMALL}, id="refused"),
        pytest.param(give_up, "sleep", {"seconds": np.full(1, 30, "f4")}, id="given up"),
        pytest.param(err, "repeat", {"IN": np.arange(5, dtype=np.int32)}, id="failed"),
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
