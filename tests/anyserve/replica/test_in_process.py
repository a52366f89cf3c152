"""`--in-process`: the essentials of clients and faults, with the app in the replica's process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2
from tritonclient.utils import shared_memory as shm

pb: Any = service_pb2
CODE = grpc.StatusCode
ROOT = Path(__file__).parents[3]
BEHAVIOURS = ("--app", "behaviours:app", "--in-process")
LIFELONG = ("--app", "lifelong:app", "--in-process")


@pytest.fixture
def live(start_replica: Any) -> Any:
    """A replica that runs `behaviours` in its own process."""
    return start_replica(*BEHAVIOURS)


@pytest.fixture
def raw(live: Any, connect: Any) -> Any:
    """A client of it."""
    return connect(live.address)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `lifelong` tells what happens to it."""
    path = tmp_path / "story"
    monkeypatch.setenv("ANYSERVE_TEST_STORY", str(path))
    return path


def outputs(reply: Any) -> dict[str, bytes]:
    """Raw contents by name."""
    return {
        output.name: content
        for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def children(pid: int) -> str:
    """The processes that it has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


# What clients see.


@pytest.mark.parametrize("size", [25, 100_000])
def test_tensors_come_back_without_another_process_or_shared_memory(
    live: Any, raw: Any, request_of: Any, segments_of: Any, size: int
) -> None:
    tensor = np.arange(size, dtype=np.float32)
    reply = raw.call("ModelInfer", request_of("echo", INPUT=tensor))
    assert outputs(reply) == {"OUTPUT": tensor.tobytes()}
    about = outputs(raw.call("ModelInfer", request_of("about", x=tensor)))
    assert int.from_bytes(about["pid"], "little") == live.process.pid
    assert (about["writeable"], about["aligned"]) == (b"\0", b"\1")
    assert children(live.process.pid) == ""
    assert not segments_of(live.process.pid)


def test_plain_functions_run_in_threads_and_sequences_keep_their_state(
    raw: Any, request_of: Any
) -> None:
    assert outputs(raw.call("ModelInfer", request_of("blocking"))) == {"thread": b"\1"}
    numbers = raw.stub.ModelStreamInfer(iter([request_of("blocking_stream", n=3)]), timeout=20)
    assert len(list(numbers)) == 3
    for place, total in enumerate((5, 10, 15)):
        request = request_of("accumulate", INPUT=np.array([5], np.int32))
        request.parameters["sequence_id"].int64_param = 7
        request.parameters["sequence_start"].bool_param = place == 0
        request.parameters["sequence_end"].bool_param = place == 2
        reply = outputs(raw.call("ModelInfer", request))
        assert int.from_bytes(reply["OUTPUT"], "little") == total


def test_streamed_responses_come_in_order_and_a_slow_reader_holds_the_handler(
    raw: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    numbers = np.arange(1000, dtype=np.int32)
    replies = raw.stub.ModelStreamInfer(iter([request_of("repeat", IN=numbers)]), timeout=20)
    contents = [reply.infer_response.raw_output_contents[0] for reply in replies]
    assert b"".join(contents) == numbers.tobytes()

    count, size = tmp_path / "count", 60_000
    flood = raw.stub.ModelStreamInfer(
        iter([request_of("flood", file=str(count), size=size)]), timeout=60
    )
    next(flood)
    eventually(lambda: int(count.read_text() or 0) >= 64)
    for _ in range(100):  # turns of the loop that the handler runs in
        raw.call("ModelInfer", request_of("echo", INPUT=[1]))
    held = int(count.read_text())
    assert held < 64 + 64 + (16 << 20) // size  # credit, and what the windows take
    for _ in range(200):
        next(flood)
    eventually(lambda: int(count.read_text() or 0) > held + 100)
    flood.cancel()


@pytest.mark.parametrize(
    "kind, code, message",
    [
        ("declared", CODE.PERMISSION_DENIED, "not for you"),
        ("grouped", CODE.FAILED_PRECONDITION, "refused inside a nursery"),
        ("unexpected", CODE.INTERNAL, "KeyError: 'secret/path'"),
        ("exit", CODE.INTERNAL, "SystemExit: 3"),
        ("no response", CODE.INTERNAL, "the handler of 'fail' gave a NoneType, not a Response"),
    ],
)
def test_what_a_handler_raises_ends_its_request_and_nothing_else(
    raw: Any, request_of: Any, kind: str, code: grpc.StatusCode, message: str
) -> None:
    refusal = raw.refusal("ModelInfer", request_of("fail", kind=kind))
    assert (refusal.code, refusal.message) == (code, message)
    raw.call("ModelInfer", request_of("echo", INPUT=[1]))


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("way", ["cancel", "grpc-timeout"])
def test_the_end_of_a_call_reaches_the_handler_and_frees_its_slot(
    raw: Any, request_of: Any, eventually: Any, tmp_path: Path, way: str, streamed: bool
) -> None:
    for name in ("first", "second"):  # the only slot is free again
        file = tmp_path / name
        request = request_of("hold_one", file=str(file))
        timeout = 0.5 if way == "grpc-timeout" else 60
        if streamed:
            call = raw.stub.ModelStreamInfer(iter([request]), timeout=timeout)
        else:
            call = raw.stub.ModelInfer.future(request, timeout=timeout)
        if way == "cancel":
            eventually(file.exists)
            call.cancel()
        eventually(Path(f"{file}.ended").exists)
        assert call.code() is (CODE.CANCELLED if way == "cancel" else CODE.DEADLINE_EXCEEDED)


def test_a_request_after_a_cancelled_one_is_not_cancelled_with_it(
    raw: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    for number in range(10):
        first, second = (tmp_path / f"{which} {number}" for which in ("first", "second"))
        cancelled = raw.stub.ModelInfer.future(request_of("hold_one", file=str(first)), timeout=60)
        eventually(first.exists)
        cancelled.cancel()
        eventually(Path(f"{first}.ended").exists)
        call = raw.stub.ModelInfer.future(request_of("until", file=str(second)), timeout=60)
        eventually(second.exists)
        second.unlink()
        assert call.result(timeout=20).outputs[0].name == "done"


@pytest.fixture
def regions(live: Any) -> Iterator[InferenceServerClient]:
    """tritonclient, with the regions `ins` and `outs` of 64 bytes registered."""
    handles = [
        shm.create_shared_memory_region(name, f"/{name}-{live.process.pid}", 64, create_only=True)
        for name in ("ins", "outs")
    ]
    with InferenceServerClient(live.address) as client:
        for name in ("ins", "outs"):
            key = f"/{name}-{live.process.pid}"
            client.register_system_shared_memory(name, key, 64, client_timeout=20)
        shm.set_shared_memory_region(handles[0], [np.full((2, 2), 3, np.float32)])
        client.outs = handles[1]
        yield client
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


def test_tensors_travel_in_the_client_s_own_regions(regions: Any) -> None:
    inputs = [InferInput(name, [2, 2], "FP32") for name in "AB"]
    for tensor in inputs:
        tensor.set_shared_memory("ins", 16)
    asked = InferRequestedOutput("SUM")
    asked.set_shared_memory("outs", 16)
    result = regions.infer("add", inputs, outputs=[asked], client_timeout=20)
    assert list(result.get_response().raw_output_contents) == [b""]
    summed = shm.get_contents_as_numpy(regions.outs, np.float32, (2, 2))
    assert summed.tolist() == [[6, 6], [6, 6]]


# Its life.


def test_the_app_is_unloaded_with_its_last_capability_and_loaded_with_the_first(
    start_replica: Any, connect: Any, request_of: Any, tree_of: Any, eventually: Any, story: Path
) -> None:
    live = start_replica(*LIFELONG, "--caps", "live,linger")
    client = connect(live.address)
    worker = "replica/workers/lifelong-0"
    assert tree_of(live)[worker].details == {"app": "lifelong:app", "running": "0"}
    client.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="linger"))
    client.call("ModelInfer", request_of("live", x=[1]))
    client.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="live"))
    eventually(lambda: worker not in tree_of(live))
    assert story.read_text().split() == ["loaded", "unloading", "unloaded"]
    assert client.refusal("ModelInfer", request_of("live", x=[1])).code is CODE.NOT_FOUND
    client.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="live"))
    client.call("ModelInfer", request_of("live", x=[1]))
    assert story.read_text().split()[3:] == ["loaded"]
    assert live.stop() == 0
    assert story.read_text().split()[4:] == ["unloading", "unloaded"]


def test_a_lifespan_that_fails_ends_its_calls_and_is_started_again(
    start_replica: Any, connect: Any, request_of: Any, tree_of: Any, eventually: Any, story: Path
) -> None:
    live = start_replica(*LIFELONG)
    client = connect(live.address)
    refusal = client.refusal("ModelInfer", request_of("die"))
    assert refusal.code is CODE.UNAVAILABLE
    assert re.fullmatch("worker lifelong-0 (is stopping|has failed)", refusal.message)

    def restarted() -> Any:
        worker = tree_of(live)["replica/workers/lifelong-0"]
        return worker if worker.restarts == 1 and worker.state == "running" else None

    worker = eventually(restarted)
    client.call("ModelInfer", request_of("live", x=[1]))
    assert "the disk is gone" in worker.last_error
    assert live.stop() == 0


@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
def test_draining_lets_requests_end_and_cancels_what_is_left(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    story: Path,
    tmp_path: Path,
    in_time: bool,
) -> None:
    live = start_replica(*BEHAVIOURS, *LIFELONG[:2], "--drain-timeout", "20" if in_time else "0.3")
    client, file = connect(live.address), tmp_path / "runs"
    call = client.stub.ModelInfer.future(
        request_of("until", file=str(file)) if in_time else request_of("linger"), timeout=60
    )
    eventually(file.exists if in_time else lambda: "lingers" in story.read_text())
    live.process.send_signal(signal.SIGTERM)
    if in_time:
        eventually(
            lambda: not connect(live.address).call("ServerReady", pb.ServerReadyRequest()).ready
        )
        file.unlink()
        assert call.result(timeout=20).outputs[0].name == "done"
    else:
        assert call.exception(timeout=20).code() is CODE.UNAVAILABLE
    assert live.process.wait(20) == 0
    told = story.read_text().split("\n")[:-1]
    assert told == ["loaded", *([] if in_time else ["lingers", "let go"]), "unloading", "unloaded"]
    assert "Traceback" not in live.log_text()


def test_a_second_signal_stops_it_even_where_a_handler_does_not_end(
    live: Any, raw: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    file = tmp_path / "runs"
    request = request_of("stubborn", file=str(file), seconds=60)
    call = raw.stub.ModelInfer.future(request, timeout=60)
    eventually(file.exists)
    live.process.send_signal(signal.SIGTERM)
    eventually(lambda: not raw.call("ServerReady", pb.ServerReadyRequest()).ready)
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(20) == 0
    assert live.process.stdout.read().splitlines()[-1] == "stopped while handlers still ran"
    assert call.exception(timeout=20).code() is CODE.UNAVAILABLE


# Looking inside.


def test_a_trace_has_both_spans_of_a_request_in_the_one_process(
    live: Any, raw: Any, request_of: Any, tmp_path: Path
) -> None:
    output = tmp_path / "trace.json"
    request = request_of("echo", INPUT=[1])
    request.id = "mine"
    words = ("trace", live.address, "--seconds", "0.5", "-o", str(output))
    tracing = subprocess.Popen(
        [sys.executable, "-m", "anyserve", *words], cwd=ROOT, stdout=subprocess.PIPE
    )
    while tracing.poll() is None:
        raw.call("ModelInfer", request)
    tracing.communicate()
    assert tracing.returncode == 0
    events = json.loads(output.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {live.process.pid}
    spans: dict[str, list[str]] = {}
    for event in events:
        if event["ph"] == "b":
            spans.setdefault(event["id"], []).append(event["name"])
    assert ["ModelInfer", "run", "echo"] in spans.values()


# What keeps it from starting.


@pytest.mark.parametrize(
    "target, message",
    [
        (
            "unimportable:app",
            "app 'unimportable:app' can't be imported: RuntimeError: broken on purpose",
        ),
        ("broken:empty", "app 'broken:empty' declares no capability"),
        (
            "broken:unloadable",
            "worker broken-0 can't load its app: OSError: weights.bin: no such file",
        ),
    ],
)
def test_an_app_that_cannot_start_is_told_of_as_with_a_worker(
    launch: Any, target: str, message: str
) -> None:
    process = launch("--in-process", "--app", target)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, f"anyserve: {message}\n")


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--in-process is for your apps: --app is missing"),
        (["--app", "behaviours:app", "--workers", "2"], "--in-process and --workers exclude .*"),
        (["--app", "behaviours:app", "--python", "/x"], "--in-process and --python exclude .*"),
    ],
)
def test_options_that_are_about_worker_processes_are_refused_beside_it(
    launch: Any, options: list[str], message: str
) -> None:
    process = launch("--in-process", *options)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(f"anyserve: {message}\n", errors)
