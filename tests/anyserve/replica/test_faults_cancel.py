"""Cancels and deadlines reach the handler, wherever the request is, and free its slot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

CODE = grpc.StatusCode

CLIENT = """
import sys
import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
address, path = sys.argv[1:]
request = pb.ModelInferRequest.FromString(open(path, "rb").read())
GRPCInferenceServiceStub(grpc.insecure_channel(address)).ModelInfer(request)
"""


@pytest.fixture
def check_ended(
    raw: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> Callable[[str, Path], None]:
    """Asserts that the handler with `file` has run and ended, and that its only slot is free."""

    def check(capability: str, file: Path) -> None:
        eventually(file.with_name(f"{file.name}.ended").exists)
        following = tmp_path / "following"
        call = raw.stub.ModelInfer.future(request_of(capability, file=str(following)), timeout=30)
        eventually(following.exists)
        call.cancel()
        eventually(lambda: not following.exists())

    return check


def code_of(call: Any) -> grpc.StatusCode:
    """The status of a call that fails."""
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(timeout=30)
    code: grpc.StatusCode = call.code()
    return code


# Before dispatch.


def test_a_request_whose_time_is_over_never_reaches_its_handler(
    raw: Any, request_of: Any, tmp_path: Path
) -> None:
    file = tmp_path / "flood"
    late = request_of("flood", timeout_us=1, file=str(file), size=1)
    refusal = raw.refusal("ModelInfer", late)
    assert refusal.code is CODE.DEADLINE_EXCEEDED
    raw.call("ModelInfer", request_of("echo", INPUT=[1]))  # comes after it on the worker's link
    assert not file.exists()


# In the queue.


@pytest.mark.parametrize("way", ["grpc-timeout", "cancel"])
def test_a_request_that_ends_in_the_queue_never_reaches_its_handler(
    raw: Any,
    request_of: Any,
    eventually: Any,
    check_ended: Any,
    tree_of: Any,
    replica: Any,
    tmp_path: Path,
    way: str,
) -> None:
    files = [tmp_path / name for name in ("first", "second")]
    first = raw.stub.ModelInfer.future(request_of("hold_queued", file=str(files[0])), timeout=60)
    eventually(files[0].exists)
    # Not refused at once: nothing, or only a short request, has been served here before.
    timeout = 1.0 if way == "grpc-timeout" else 60
    second = raw.stub.ModelInfer.future(
        request_of("hold_queued", file=str(files[1])), timeout=timeout
    )

    def waiting() -> str:
        return str(tree_of(replica)["replica/dispatcher"].details["hold_queued"])

    if way == "cancel":
        eventually(lambda: waiting() == "1 running, 1 waiting")
        second.cancel()
    assert code_of(second) is (CODE.CANCELLED if way == "cancel" else CODE.DEADLINE_EXCEEDED)
    eventually(lambda: waiting() == "1 running, 0 waiting")
    assert files[0].exists()
    assert not files[1].exists()
    first.cancel()
    check_ended("hold_queued", files[0])


# In the handler, before the first response.


@pytest.mark.parametrize(
    "way, code",
    [
        ("cancel", CODE.CANCELLED),
        ("grpc-timeout", CODE.DEADLINE_EXCEEDED),
        ("timeout parameter", CODE.DEADLINE_EXCEEDED),
    ],
)
def test_the_end_of_a_call_reaches_the_handler_and_frees_its_slot(
    raw: Any,
    request_of: Any,
    eventually: Any,
    check_ended: Any,
    tmp_path: Path,
    way: str,
    code: grpc.StatusCode,
) -> None:
    file = tmp_path / "runs"
    timeout_us = 400_000 if way == "timeout parameter" else 0
    request = request_of("hold_one", timeout_us=timeout_us, file=str(file))
    call = raw.stub.ModelInfer.future(request, timeout=0.4 if way == "grpc-timeout" else 60)
    if way == "cancel":
        eventually(file.exists)
        call.cancel()
    assert code_of(call) is code
    check_ended("hold_one", file)


def test_the_death_of_a_client_reaches_the_handler_and_frees_its_slot(
    replica: Any, request_of: Any, eventually: Any, check_ended: Any, tmp_path: Path
) -> None:
    file, message = tmp_path / "runs", tmp_path / "message"
    message.write_bytes(request_of("hold_one", file=str(file)).SerializeToString())
    client = subprocess.Popen([sys.executable, "-c", CLIENT, replica.address, str(message)])
    try:
        eventually(file.exists)
    finally:
        client.kill()
        client.wait()
    check_ended("hold_one", file)


# In a stream.


@pytest.mark.parametrize("started", [False, True], ids=["before the first response", "mid-stream"])
@pytest.mark.parametrize("way", ["cancel", "grpc-timeout", "timeout parameter"])
def test_the_end_of_a_stream_reaches_the_handler_and_frees_its_slot(
    raw: Any,
    request_of: Any,
    eventually: Any,
    check_ended: Any,
    tmp_path: Path,
    way: str,
    started: bool,
) -> None:
    file = tmp_path / "runs"
    inputs = {"file": str(file), **({"first": True} if started else {})}
    budget = 1.0 if started else 0.4
    timeout_us = round(budget * 1e6) if way == "timeout parameter" else 0
    request = request_of("hold_one", timeout_us=timeout_us, **inputs)
    timeout = budget if way == "grpc-timeout" else 60
    call = raw.stub.ModelStreamInfer(iter([request]), timeout=timeout)
    if started:
        assert next(call).infer_response.outputs[0].name == "started"
    if way == "cancel":
        eventually(file.exists)
        call.cancel()
    if way == "timeout parameter":  # the request's own: the stream goes on, here to its end
        assert "deadline" in next(call).error_message
        assert list(call) == []
    else:
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is (CODE.CANCELLED if way == "cancel" else CODE.DEADLINE_EXCEEDED)
    check_ended("hold_one", file)


def test_a_cancelled_call_leaves_the_others_of_its_connection_alone(
    raw: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("cancelled", "goes on")]
    calls = [
        raw.stub.ModelInfer.future(request_of(name, file=str(file)), timeout=60)
        for name, file in zip(("hold_one", "until"), files, strict=True)
    ]
    for file in files:
        eventually(file.exists)
    calls[0].cancel()
    eventually(lambda: not files[0].exists())
    assert files[1].exists()
    files[1].unlink()
    assert calls[1].result(timeout=30).outputs[0].name == "done"
