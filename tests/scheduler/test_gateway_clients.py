"""Clients that know nothing of a fleet, at its front door: tritonclient and grpcio."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import grpc
import numpy as np
import pytest
import trio
from anyserve_protos.anyserve import v1 as wire
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from anyserve.client import encode_request, open_client
from anyserve.errors import AnyServeError, NotFound, PermissionDenied

pb: Any = service_pb2
ROOT = Path(__file__).parents[2]
READY = re.compile(r"ready (?:in .* )?on (\S+:\d+)$")
CODE = grpc.StatusCode
KINDS = {"i": "INT32", "f": "FP32", "O": "BYTES"}


@attrs.frozen
class Process:
    """One process of a fleet."""

    process: subprocess.Popen[str]
    address: str


@contextmanager
def running(folder: Path, name: str, *arguments: str) -> Iterator[Process]:
    """A process that says where it is ready."""
    with (folder / name).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--port", "0"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "apps")},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        found = (READY.search(line.rstrip()) for line in process.stdout)
        address = next((match[1] for match in found if match), None)
        assert address, (folder / name).read_text()
        yield Process(process, address)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()


@attrs.frozen
class Fleet:
    """A scheduler and two replicas: `a` has workers and all behaviours, `b` is a twin."""

    scheduler: Process
    a: Process
    b: Process

    @contextmanager
    def stub(self) -> Iterator[Any]:
        """grpcio's stub for the front door."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.scheduler.address, options=options) as channel:
            yield GRPCInferenceServiceStub(channel)

    def known(self) -> dict[str, str]:
        """The state of each replica that the scheduler knows."""
        with grpc.insecure_channel(self.scheduler.address) as channel:
            method = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
            reply = wire.FleetReply.parse(method(b"", timeout=10, wait_for_ready=True))
        return {replica.replica_id: replica.state for replica in reply.replicas}


@contextmanager
def running_fleet(
    folder: Path, transport: str, eventually: Any, *a_options: str
) -> Iterator[Fleet]:
    with ExitStack() as stack:
        common = ("--transport", transport)
        lease = ("--lease", "2", "--interval", "0.3")
        start = lambda *arguments: stack.enter_context(running(folder, *arguments))  # noqa: E731
        scheduler = start("scheduler", "anyserve_scheduler", *common, *lease)
        to = (*common, "--scheduler", scheduler.address, "--replica-id")
        a = start("a", "anyserve.replica", *a_options, *to, "a")
        b = start("b", "anyserve.replica", "--app", "twins:app", "--in-process", *to, "b")
        fleet = Fleet(scheduler, a, b)
        eventually(lambda: fleet.known() == {"a": "live", "b": "live"})
        yield fleet


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, transport: str, settled: Any, eventually: Any
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with running_fleet(folder, transport, eventually, "--app", "behaviours:app") as fleet:
        settled(fleet.scheduler.address)
        yield fleet


@pytest.fixture
def own_fleet(tmp_path: Path, transport: str, eventually: Any) -> Iterator[Fleet]:
    """Two twins, for tests that break something."""
    with running_fleet(
        tmp_path, transport, eventually, "--app", "twins:app", "--in-process"
    ) as fleet:
        yield fleet


@pytest.fixture
def stub(fleet: Fleet) -> Iterator[Any]:
    with fleet.stub() as stub:
        yield stub


@pytest.fixture
def triton(fleet: Fleet) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(fleet.scheduler.address) as client:
        yield client


def request(model: str, identity: str = "", **inputs: Any) -> Any:
    body = encode_request(model, inputs or {"x": "1"}, {}, identity)
    return pb.ModelInferRequest.FromString(body)


def tensor(name: str, array: Any) -> InferInput:
    found = InferInput(name, list(array.shape), KINDS[array.dtype.kind])
    found.set_data_from_numpy(array)
    return found


def text(response: Any, name: str) -> str:
    names = [output.name for output in response.outputs]
    return response.raw_output_contents[names.index(name)][4:].decode()


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_tensors_pass_unchanged(triton: InferenceServerClient, size: int) -> None:
    array = np.arange(size, dtype=np.float32)
    result = triton.infer("echo", [tensor("INPUT0", array)], request_id="mine")
    assert result.get_response().id == "mine"
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_each_request_of_a_stream_goes_where_it_is_served(triton: InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    triton.start_stream(lambda result, error: answers.put(error or result))
    values = np.arange(50, dtype=np.int32)
    triton.async_stream_infer("repeat", [tensor("IN", values)])
    triton.async_stream_infer("nope", [tensor("IN", values)])
    triton.async_stream_infer("count", [tensor("n", np.array([b"20"], object))])
    got = [answers.get(timeout=20) for _ in range(71)]
    triton.stop_stream()
    names = [each.get_response().model_name for each in got if not isinstance(each, Exception)]
    assert (names.count("repeat"), names.count("count")) == (50, 20)
    repeated = [r for r in got if not isinstance(r, Exception) and r.as_numpy("OUT") is not None]
    assert [int(each.as_numpy("OUT")[0]) for each in repeated] == list(range(50))
    (error,) = [each for each in got if isinstance(each, Exception)]
    assert isinstance(error, InferenceServerException)
    assert "nope" in str(error)


def test_a_handlers_error_and_an_unknown_name_have_their_statuses(stub: Any) -> None:
    for model, code in (("nope", CODE.NOT_FOUND), ("add", CODE.INVALID_ARGUMENT)):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request(model), timeout=20)
        assert caught.value.code() is code
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(pb.ModelInferRequest(model_name="echo", model_version="9"), timeout=20)
    assert caught.value.code() is CODE.NOT_FOUND


@pytest.mark.parametrize("how", ["cancelled", "late"])
@pytest.mark.parametrize("model", ["narrow", "count"])
def test_a_request_that_is_given_up_ends_in_its_replica(
    stub: Any, tmp_path: Path, how: str, model: str, eventually: Any
) -> None:
    file = tmp_path / "runs"
    message = request(model, file=str(file), seconds="60", n="1000", pause="1")
    timeout = 3.0 if how == "late" else 60
    if model == "narrow":
        call = stub.ModelInfer.future(message, timeout=timeout)
    else:
        call = stub.ModelStreamInfer(iter([message]), timeout=timeout)
    eventually(file.exists)
    if how == "cancelled":
        call.cancel()
    else:
        with pytest.raises(grpc.RpcError) as caught:
            call.result() if model == "narrow" else list(call)
        assert caught.value.code() is CODE.DEADLINE_EXCEEDED
    eventually(lambda: not file.exists())


def test_a_slow_reader_holds_its_handler(stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "given"
    message = request("flood", file=str(file), size=np.array([100_000]))
    call = stub.ModelStreamInfer(iter([message]), timeout=60)
    next(call)
    seen = -1
    while (now := int(file.read_text() or 0)) != seen:
        seen = now
        time.sleep(0.3)
    assert seen < 2_000  # of a million
    call.cancel()


def test_metadata_goes_along_and_the_budget_shrinks(stub: Any) -> None:
    metadata = [("mine", "1"), ("anyserve-delegations", "7")]
    answer = stub.ModelInfer(request("who"), timeout=9, metadata=metadata)
    assert '"mine": "1"' in text(answer, "metadata")
    assert '"anyserve-delegations": "0"' in text(answer, "metadata")
    assert 7 < float(text(answer, "left")) < 9


def test_the_fleet_looks_like_one_server(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert "statistics" in triton.get_server_metadata().extensions
    assert triton.is_model_ready("add", "3")
    assert triton.is_model_ready("who")
    assert not triton.is_model_ready("add", "4")
    assert not triton.is_model_ready("nope")
    metadata = triton.get_model_metadata("add")
    assert (metadata.name, list(metadata.versions)) == ("add", ["3"])
    assert triton.get_model_config("repeat").config.model_transaction_policy.decoupled
    index = {model.name: model.state for model in triton.get_model_repository_index().models}
    assert index["echo"] == index["who"] == "READY"
    triton.get_trace_settings()
    triton.get_log_settings()
    with pytest.raises(InferenceServerException, match="shared memory is of one machine"):
        triton.register_system_shared_memory("region", "/key", 10)
    triton.unregister_system_shared_memory()
    with pytest.raises(InferenceServerException, match="nope"):
        triton.get_model_metadata("nope")


def test_statistics_are_the_sums_over_the_replicas(own_fleet: Fleet) -> None:
    with own_fleet.stub() as stub:
        pids = {text(stub.ModelInfer(request("who"), timeout=20), "pid") for _ in range(40)}
        statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="who"), timeout=20)
        everything = stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=20)
    assert pids == {str(own_fleet.a.process.pid), str(own_fleet.b.process.pid)}
    (of_who,) = statistics.model_stats
    assert of_who.inference_stats.success.count == of_who.inference_count == 40
    assert {each.name for each in everything.model_stats} == {"who", "narrow", "count"}


def test_models_are_loaded_and_unloaded_wherever_they_are(
    own_fleet: Fleet, eventually: Any
) -> None:
    with InferenceServerClient(own_fleet.scheduler.address) as client:
        client.unload_model("who")
        assert eventually(lambda: not client.is_model_ready("who")) is not False
        with pytest.raises(InferenceServerException, match="who"):
            client.infer("who", [tensor("x", np.ones(1, np.int32))])
        client.load_model("who")
        eventually(lambda: client.is_model_ready("who"))
        client.infer("who", [tensor("x", np.ones(1, np.int32))])
        with pytest.raises(InferenceServerException, match="no replica of the fleet has 'nope'"):
            client.load_model("nope")


def test_an_error_in_a_stream_has_its_status_from_a_replica_and_from_the_front_door(
    fleet: Fleet,
) -> None:
    async def ask() -> list[type[Exception]]:
        found: list[type[Exception]] = []
        async with open_client(fleet.scheduler.address) as client, client.stream() as stream:
            for capability in ("fail", "nope", "echo"):
                await stream.send(capability, {"kind": "declared"})
                try:
                    await anext(aiter(stream))
                except AnyServeError as error:
                    found.append(type(error))
        return found

    assert trio.run(ask) == [PermissionDenied, NotFound]


def test_a_replica_that_is_killed_ends_its_requests_and_no_others(
    own_fleet: Fleet, tmp_path: Path
) -> None:
    sent: queue.Queue[Any] = queue.Queue()
    file = tmp_path / "runs"
    with own_fleet.stub() as stub:
        call = stub.ModelStreamInfer(iter(sent.get, None), timeout=60)
        sent.put(request("count", "1", file=str(file), n="1000", pause="0.05"))
        first = next(call).infer_response
        killed = own_fleet.a if text(first, "pid") == str(own_fleet.a.process.pid) else own_fleet.b
        killed.process.kill()
        error = next(reply.error_message for reply in call if reply.error_message)
        assert "is lost" in error
        sent.put(request("who", "2"))
        reply = next(call)
        assert not reply.error_message
        assert text(reply.infer_response, "pid") != str(killed.process.pid)
        sent.put(None)
        assert list(call) == []
        for _ in range(20):
            stub.ModelInfer(request("who"), timeout=20)


def test_a_scheduler_that_is_killed_ends_what_went_through_it_and_nothing_else(
    own_fleet: Fleet, tmp_path: Path, eventually: Any
) -> None:
    file = tmp_path / "runs"
    with own_fleet.stub() as stub, grpc.insecure_channel(own_fleet.a.address) as direct:
        call = stub.ModelInfer.future(request("narrow", file=str(file), seconds="60"), timeout=60)
        eventually(file.exists)
        own_fleet.scheduler.process.kill()
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is CODE.UNAVAILABLE
        eventually(lambda: not file.exists())
        replica = GRPCInferenceServiceStub(direct)
        for _ in range(20):
            replica.ModelInfer(request("who"), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            replica.ModelInfer(request("nope"), timeout=20)
        assert caught.value.code() is CODE.NOT_FOUND


def test_a_replica_that_is_stopped_is_left_out_and_comes_back(
    own_fleet: Fleet, eventually: Any
) -> None:
    stopped = own_fleet.a.process
    with own_fleet.stub() as stub:
        stub.ModelInfer(request("who"), timeout=20)
        stopped.send_signal(signal.SIGSTOP)
        eventually(lambda: own_fleet.known().get("a") != "live")
        for _ in range(20):
            answer = stub.ModelInfer(request("who"), timeout=20)
            assert text(answer, "pid") == str(own_fleet.b.process.pid)
        stopped.send_signal(signal.SIGCONT)
        eventually(lambda: own_fleet.known().get("a") == "live")
        pids = {text(stub.ModelInfer(request("who"), timeout=20), "pid") for _ in range(60)}
    assert str(stopped.pid) in pids
