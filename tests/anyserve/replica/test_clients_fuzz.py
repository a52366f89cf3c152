"""Hostile requests on a live port: each gets a status, others notice nothing, nothing is left."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

pb: Any = service_pb2
CODE = grpc.StatusCode
SERVICE = "/inference.GRPCInferenceService"
EXPECTED = {
    CODE.OK,
    CODE.INVALID_ARGUMENT,
    CODE.NOT_FOUND,
    CODE.UNIMPLEMENTED,
    CODE.RESOURCE_EXHAUSTED,
}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CAPS = "echo,batched,lengths,repeat,accumulate"
fuzzing = settings(max_examples=100)


def valid_requests() -> list[bytes]:
    """One for each capability, with something of everything."""
    echo = pb.ModelInferRequest(model_name="echo", model_version="1", id="echo")
    echo.inputs.add(name="x", datatype="BYTES", shape=[2])
    echo.inputs.add(name="y", datatype="FP64", shape=[1, 2])
    echo.raw_input_contents.extend([b"\x01\x00\x00\x00a\x00\x00\x00\x00", bytes(16)])
    echo.parameters["flag"].bool_param = True
    echo.parameters["number"].int64_param = -1
    echo.outputs.add(name="x").parameters["binary_data"].bool_param = True
    batched = pb.ModelInferRequest(model_name="batched", id="batched")
    batched.inputs.add(name="x", datatype="INT32", shape=[2, 2]).contents.int_contents.extend(
        [1, 2, 3, 4]
    )
    lengths = pb.ModelInferRequest(model_name="lengths")
    lengths.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        b"text"
    )
    repeat = pb.ModelInferRequest(model_name="repeat", id="repeat")
    repeat.inputs.add(name="IN", datatype="INT32", shape=[1])
    repeat.raw_input_contents.append(bytes(4))
    repeat.parameters["triton_enable_empty_final_response"].bool_param = True
    region = pb.ModelInferRequest(model_name="echo", id="region")
    parameters = region.inputs.add(name="x", datatype="INT32", shape=[1]).parameters
    parameters["shared_memory_region"].string_param = "none"
    parameters["shared_memory_byte_size"].int64_param = 4
    parameters["shared_memory_offset"].int64_param = 0
    return [r.SerializeToString() for r in (echo, batched, lengths, repeat, region)]


@st.composite
def mutated_requests(draw: st.DrawFn) -> bytes:
    """A valid request with a few bytes changed, cut out, put in or doubled."""
    data = bytearray(draw(st.sampled_from(valid_requests())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        end = draw(st.integers(at, min(at + 20, len(data))))
        match draw(st.sampled_from(["change", "cut", "insert", "double", "truncate"])):
            case "change":
                data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "cut":
                del data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "double":
                data[at:at] = data[at:end]
            case "truncate":
                del data[at:]
    return bytes(data)


def parameters() -> st.SearchStrategy[dict[str, Any]]:
    value = st.one_of(
        st.builds(lambda v: pb.InferParameter(bool_param=v), st.booleans()),
        st.builds(lambda v: pb.InferParameter(int64_param=v), st.integers(-(2**63), 2**63 - 1)),
        st.builds(lambda v: pb.InferParameter(string_param=v), st.text(max_size=5)),
        st.builds(lambda v: pb.InferParameter(double_param=v), st.floats()),
        st.just(pb.InferParameter()),
    )
    known = st.sampled_from(
        [
            "shared_memory_region",
            "shared_memory_byte_size",
            "shared_memory_offset",
            "sequence_id",
            "sequence_start",
            "need.max_context",
        ]
    )
    return st.dictionaries(known | st.text(max_size=5), value, max_size=3)


@st.composite
def strange_requests(draw: st.DrawFn) -> bytes:
    """A well-formed message whose parts need not fit one another."""
    request = pb.ModelInferRequest(
        model_name=draw(st.sampled_from([*CAPS.split(","), "", "crash", "a/b"])),
        model_version=draw(st.sampled_from(["", "", "1", "2", "x"])),
        id=draw(st.text(max_size=3)),
        raw_input_contents=draw(st.lists(st.binary(max_size=20), max_size=3)),
    )
    for key, value in draw(parameters()).items():
        request.parameters[key].CopyFrom(value)
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["x", "text", "IN", "INPUT", ""])),
            datatype=draw(st.sampled_from(["INT32", "BYTES", "BF16", "BOOL", "FP32", "", "?"])),
            shape=draw(st.lists(st.sampled_from([0, 1, 2, -1, 2**31, 2**62]), max_size=3)),
        )
        for key, value in draw(parameters()).items():
            tensor.parameters[key].CopyFrom(value)
        if draw(st.booleans()):
            tensor.contents.int_contents.extend(draw(st.lists(st.integers(-5, 5), max_size=4)))
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=3), max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(st.sampled_from(["x", "y", "OUT", ""])))
    return bytes(request.SerializeToString())


class Bystander:
    """A client that behaves, with a stream that stays open, beside those that don't."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._requests: queue.Queue[Any] = queue.Queue()
        self._answers = raw.stub.ModelStreamInfer(iter(self._requests.get, None), timeout=110)
        self._asked = 0

    def ask(self) -> None:
        """One unary request and one on the stream, each answered with what it asked."""
        self._asked += 1
        content = self._asked.to_bytes(4, "little")
        request = pb.ModelInferRequest(model_name="echo", id=f"{self._asked}")
        request.inputs.add(name="x", datatype="INT32", shape=[1])
        request.raw_input_contents.append(content)
        self._requests.put(request)
        for answer in (self._raw.call("ModelInfer", request), next(self._answers).infer_response):
            assert answer.id == request.id
            assert answer.raw_output_contents == [content]

    def leave(self) -> None:
        """End the stream, which must have nothing more to say."""
        self._requests.put(None)
        assert list(self._answers) == []


@attrs.frozen
class Attack:
    """Who takes part in a test."""

    raw: Any
    """The hostile client."""
    bystander: Bystander
    port: int


@attrs.frozen
class Usage:
    """What a replica and its workers hold."""

    files: dict[int, int]
    """Open file descriptors of each process."""
    shared_memory: set[str]


@pytest.fixture
def attack(
    start_replica: Any,
    connect: Any,
    workers_of: Any,
    segments_of: Any,
    eventually: Callable[..., Any],
) -> Iterator[Attack]:
    """A replica of the test's own with two clients; checks what is left behind."""
    live = start_replica("--app", "behaviours:app", "--caps", CAPS)

    def usage() -> Usage:
        pids = [live.process.pid, *workers_of(live).values()]
        files = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}
        return Usage(files, segments_of(live.process.pid))

    raw = connect(live.address)
    bystander = Bystander(connect(live.address))
    for body in valid_requests():
        status_of(raw, body)
    bystander.ask()
    before = usage()
    yield Attack(raw, bystander, live.port)
    bystander.ask()
    # Looking takes a connection of its own, whose end the replica may hear of a little later.
    eventually(lambda: usage() == before)
    bystander.leave()
    assert live.stop() == 0
    assert "Traceback" not in live.log_text()
    assert not segments_of(live.process.pid)


def status_of(raw: Any, body: bytes, method: str = "ModelInfer") -> grpc.StatusCode:
    """Send bytes as a method's request; the status that comes back."""
    try:
        raw.channel.unary_unary(f"{SERVICE}/{method}")(body, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return CODE.OK


def test_the_requests_that_are_mutated_are_valid(raw: Any) -> None:
    found = [status_of(raw, body) for body in valid_requests()]
    assert found == [CODE.OK, CODE.OK, CODE.OK, CODE.OK, CODE.NOT_FOUND]


def test_random_and_mutated_requests_each_get_a_status(attack: Attack) -> None:
    raw, bystander = attack.raw, attack.bystander

    @fuzzing
    @given(st.binary(max_size=200))
    def random_bytes(body: bytes) -> None:
        assert status_of(raw, body) in EXPECTED
        bystander.ask()

    @fuzzing
    @given(mutated_requests())
    def mutated(body: bytes) -> None:
        assert status_of(raw, body) in EXPECTED
        bystander.ask()

    @fuzzing
    @given(strange_requests())
    def strange(body: bytes) -> None:
        assert status_of(raw, body) in EXPECTED
        bystander.ask()

    random_bytes()
    mutated()
    strange()


def part(tag: int, content: bytes) -> bytes:
    """A field of bytes, with its tag and length."""
    size, length = len(content), b""
    while size > 0x7F:
        size, length = size >> 7, length + bytes([size & 0x7F | 0x80])
    return bytes([tag]) + length + bytes([size]) + content


COUNTLESS = 1_000_000
SMALL_PARTS = {
    "parameters": part(0x22, b"") * COUNTLESS,
    "keys of a parameter": part(0x22, part(0x0A, b"") * COUNTLESS),
    "values of a parameter": part(0x22, part(0x12, b"\x08\x01" * COUNTLESS)),
    "inputs": part(0x2A, b"") * COUNTLESS,
    "outputs": part(0x32, b"") * COUNTLESS,
    "raw contents": part(0x3A, b"") * COUNTLESS,
    "unknown fields": b"\x78\x00" * COUNTLESS,
    "dimensions": part(0x2A, b"\x18\x01" * COUNTLESS),
    "parameters of an input": part(0x2A, part(0x22, b"") * COUNTLESS),
    "typed strings": part(0x2A, part(0x2A, part(0x42, b"") * COUNTLESS)),
    "raw strings": (
        part(0x2A, b"\x0a\x01x" + part(0x12, b"BYTES") + b"\x18\xc0\x84\x3d")
        + part(0x3A, bytes(4 * COUNTLESS))
    ),
    "a region's name": part(0x2A, part(0x22, part(0x0A, b"shared_memory_region") * 100_000)),
}


@pytest.mark.parametrize("kind", SMALL_PARTS)
def test_a_request_of_countless_small_parts_is_refused(raw: Any, kind: str) -> None:
    body = b"\x0a\x04echo" + SMALL_PARTS[kind]
    assert status_of(raw, body) is CODE.INVALID_ARGUMENT


def test_a_stream_of_hostile_requests_answers_those_that_are_good(
    attack: Attack,
) -> None:
    raw, bystander = attack.raw, attack.bystander
    method = raw.channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
    good = pb.ModelInferRequest(model_name="echo", id="good one")

    @fuzzing
    @given(st.lists(st.binary(max_size=50) | mutated_requests() | strange_requests(), max_size=5))
    def stream(bodies: list[bytes]) -> None:
        call = method(iter([*bodies, good.SerializeToString()]), timeout=20)
        answers = [pb.ModelStreamInferResponse.FromString(answer) for answer in call]
        assert call.code() is CODE.OK
        found = [a for a in answers if a.infer_response.id == good.id]
        assert len(found) == 1
        assert not found[0].error_message
        bystander.ask()

    stream()


def test_hostile_messages_to_the_other_methods_each_get_a_status(
    attack: Attack,
) -> None:
    raw, bystander = attack.raw, attack.bystander
    methods = [
        *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
        *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
        *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "CudaSharedMemoryRegister"),
    ]

    @fuzzing
    @given(st.sampled_from(methods), st.binary(max_size=60))
    def call(method: str, body: bytes) -> None:
        assert status_of(raw, body, method) in EXPECTED
        bystander.ask()

    call()


def test_bytes_that_are_no_http_2_end_in_a_closed_connection(attack: Attack) -> None:
    @fuzzing
    @given(st.binary(max_size=100), st.booleans())
    def connect_and_send(data: bytes, with_preface: bool) -> None:
        with socket.create_connection(("127.0.0.1", attack.port), timeout=20) as connection:
            connection.sendall((PREFACE if with_preface else b"") + data)
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass
        attack.bystander.ask()

    connect_and_send()
