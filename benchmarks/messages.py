"""The requests that are sent, built once, and single calls that check what is answered."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
import numpy as np
from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import join_request

from benchmarks.errors import CannotMeasure
from benchmarks.pacing import Stream
from benchmarks.prepared import INFER, STREAM_INFER

REGISTER = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"

_TIMEOUT = 20.0
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def echo_request(floats: int) -> bytes:
    """A ModelInferRequest to `echo` with one FP32 tensor of shape [1, floats] in it."""
    tensor = np.random.default_rng(7).random(floats, np.float32)
    head = pb.ModelInferRequest(model_name="echo", id="1", inputs=[_input(floats)])
    return join_request(bytes(head), [tensor.tobytes()])


def shared_echo_request(floats: int, source: str, target: str) -> bytes:
    """The same with the tensor in the region `source`, and its echo wanted in `target`."""
    tensor = _input(floats)
    tensor.parameters = _region(source, floats)
    output = pb.ModelInferRequestInferRequestedOutputTensor(
        name="OUTPUT0", parameters=_region(target, floats)
    )
    return bytes(pb.ModelInferRequest(model_name="echo", id="1", inputs=[tensor], outputs=[output]))


def stream_request(stream: Stream, capability: str = "stream") -> bytes:
    """A ModelInferRequest to `stream`, or to what is like it."""
    numbers = np.array(stream.numbers(), np.int32)
    tensor = pb.ModelInferRequestInferInputTensor(
        name="INPUT0", datatype="INT32", shape=[len(numbers)]
    )
    head = pb.ModelInferRequest(model_name=capability, id="1", inputs=[tensor])
    return join_request(bytes(head), [numbers.tobytes()])


def hang_request(path: str) -> bytes:
    """A ModelInferRequest to `hang`, whose cancellation is noted at `path`."""
    content = path.encode()
    tensor = pb.ModelInferRequestInferInputTensor(name="INPUT0", datatype="BYTES", shape=[1])
    head = pb.ModelInferRequest(model_name="hang", id="1", inputs=[tensor])
    return join_request(bytes(head), [len(content).to_bytes(4, "little") + content])


def register_request(name: str, key: str, size: int) -> bytes:
    """A SystemSharedMemoryRegisterRequest for the file `/dev/shm/KEY` of `size` bytes."""
    return bytes(pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=size))


def call(address: str, method: str, request: bytes) -> bytes:
    """One call with grpcio; raises `CannotMeasure` for any status but OK."""
    with grpc.insecure_channel(address, options=_UNLIMITED) as channel:
        try:
            reply: bytes = channel.unary_unary(method)(
                request, timeout=_TIMEOUT, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise CannotMeasure(f"{method} at {address}: {error.details()}") from error
    return reply


def check_echo(address: str, request: bytes) -> int:
    """Send `request` once and see that its tensor comes back; the size of the reply in bytes."""
    reply = call(address, INFER, request)
    sent = pb.ModelInferRequest.parse(request)
    answer = pb.ModelInferResponse.parse(reply)
    if answer.raw_output_contents != sent.raw_input_contents:
        raise CannotMeasure(f"{address} does not echo the tensor")
    return len(reply)


def check_stream(address: str, request: bytes, messages: int) -> int:
    """Send `request` once and see that all its messages come, in order; their size in bytes."""
    with grpc.insecure_channel(address, options=_UNLIMITED) as channel:
        stream = channel.stream_stream(STREAM_INFER)
        try:
            replies = list(stream(iter([request]), timeout=_TIMEOUT, wait_for_ready=True))
        except grpc.RpcError as error:
            raise CannotMeasure(f"{STREAM_INFER} at {address}: {error.details()}") from error
    # Peers differ in their messages, but the tensor's four bytes are in all of them.
    numbers = [number.to_bytes(4, "little") for number in range(messages)]
    if len(replies) != messages or not all(map(bytes.__contains__, replies, numbers)):
        raise CannotMeasure(f"{address} answers a stream with {len(replies)} wrong messages")
    return sum(map(len, replies))


def _input(floats: int) -> pb.ModelInferRequestInferInputTensor:
    return pb.ModelInferRequestInferInputTensor(name="INPUT0", datatype="FP32", shape=[1, floats])


def _region(name: str, floats: int) -> dict[str, pb.InferParameter]:
    return {
        "shared_memory_region": pb.InferParameter(string_param=name),
        "shared_memory_byte_size": pb.InferParameter(int64_param=floats * 4),
    }
