"""Health checks and reflection, with message classes made of what reflection itself answers."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

pb: Any = service_pb2
VERSIONS = ["grpc.reflection.v1", "grpc.reflection.v1alpha"]
SERVICES = {
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}

FILE_CONTAINING_SYMBOL, LIST_SERVICES = 4, 7
"""Field numbers of ServerReflectionRequest, from the protocol's specification."""


def bootstrap(field: int, text: str) -> bytes:
    """A ServerReflectionRequest, before there is a class for it; of a short text."""
    return bytes([field << 3 | 2, len(text)]) + text.encode()


def fields_at(message: bytes, *path: int) -> list[bytes]:
    """All values at `path`, field numbers of messages in one another, in a message."""
    found, position = [], 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        tag = read_varint()
        assert tag & 7 == 2
        length = read_varint()
        if tag >> 3 == path[0]:
            part = message[position : position + length]
            found += fields_at(part, *path[1:]) if path[1:] else [part]
        position += length
    return found


def reflect(channel: grpc.Channel, version: str, *requests: bytes) -> list[bytes]:
    """The answers to requests on one stream of reflection."""
    method = channel.stream_stream(f"/{version}.ServerReflection/ServerReflectionInfo")
    return list(method(iter(requests), timeout=20))


def classes(channel: grpc.Channel, symbol: str) -> Any:
    """From a message's full name to its class, for all that the file of `symbol` needs."""
    (answer,) = reflect(channel, VERSIONS[0], bootstrap(FILE_CONTAINING_SYMBOL, symbol))
    pool = DescriptorPool()
    files = {}
    for data in fields_at(answer, 4, 1):
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        files[file.name] = file

    def add(name: str) -> None:
        file = files.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name in list(files):
        add(name)
    return lambda name: GetMessageClass(pool.FindMessageTypeByName(name))


@pytest.fixture(scope="module")
def health(raw: Any) -> Any:
    """The message classes of the health protocol."""
    return classes(raw.channel, "grpc.health.v1.Health")


def checker(raw: Any, health: Any) -> Any:
    return raw.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=health("grpc.health.v1.HealthCheckResponse").FromString,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_reflection_lists_every_service(raw: Any, version: str) -> None:
    (answer,) = reflect(raw.channel, version, bootstrap(LIST_SERVICES, "*"))
    assert {name.decode() for name in fields_at(answer, 6, 1, 1)} == SERVICES


@pytest.mark.parametrize("version", VERSIONS)
def test_reflection_answers_many_questions_on_one_stream(raw: Any, version: str) -> None:
    names = [*SERVICES, "inference.ModelInferRequest"]
    answers = reflect(
        raw.channel, version, *(bootstrap(FILE_CONTAINING_SYMBOL, name) for name in names)
    )
    assert len(answers) == len(names)
    assert all(fields_at(answer, 4, 1) for answer in answers)


def test_a_client_that_knows_only_reflection_infers(raw: Any) -> None:
    messages = classes(raw.channel, "inference.GRPCInferenceService")
    infer = raw.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=messages("inference.ModelInferResponse").FromString,
    )
    request = messages("inference.ModelInferRequest")(model_name="echo", id="by reflection")
    request.inputs.add(name="INPUT", datatype="UINT8", shape=[2])
    request.raw_input_contents.append(b"ab")
    answer = infer(request, timeout=20)
    assert answer.id == "by reflection"
    assert answer.raw_output_contents == [b"ab"]


# 25. Health.


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "echo", "add.heavy"])
def test_the_server_and_each_model_are_serving(raw: Any, health: Any, service: str) -> None:
    request = health("grpc.health.v1.HealthCheckRequest")(service=service)
    answer = checker(raw, health)(request, timeout=20)
    assert answer.status == answer.ServingStatus.Value("SERVING")


def test_health_of_an_unknown_service_is_not_found(raw: Any, health: Any) -> None:
    request = health("grpc.health.v1.HealthCheckRequest")(service="nothing")
    with pytest.raises(grpc.RpcError) as caught:
        checker(raw, health)(request, timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_follows_a_model_that_is_unloaded_and_loaded(raw: Any, health: Any) -> None:
    watch = raw.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=health("grpc.health.v1.HealthCheckResponse").FromString,
    )
    request = health("grpc.health.v1.HealthCheckRequest")(service="lengths")
    call = watch(request, timeout=30)
    seen: queue.Queue[str] = queue.Queue()

    def read() -> None:
        try:
            for answer in call:
                seen.put(answer.ServingStatus.Name(answer.status))
        except grpc.RpcError as error:
            seen.put(error.code().name)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert seen.get(timeout=20) == "SERVING"
        raw.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="lengths"))
        assert seen.get(timeout=20) == "NOT_SERVING"
        raw.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="lengths"))
        assert seen.get(timeout=20) == "SERVING"
    finally:
        call.cancel()
        reader.join(20)
    assert seen.get(timeout=20) == "CANCELLED"
