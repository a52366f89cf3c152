"""Server reflection in both its versions, read with Google's protobuf."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import grpc
import pytest
import trio
from anyserve_protos.grpc.reflection import v1, v1alpha
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from anyserve.transport.address import TcpAddress
from anyserve.transport.health import HealthService, HealthState
from anyserve.transport.reflection import ReflectionService
from anyserve.transport.trio_client import Channel, open_channel
from anyserve.transport.trio_server import serve

VERSIONS = [("grpc.reflection.v1", v1), ("grpc.reflection.v1alpha", v1alpha)]


@pytest.fixture
async def channel() -> AsyncIterator[Channel]:
    health = HealthService(HealthState())
    async with trio.open_nursery() as nursery:
        services = [health, ReflectionService([health])]
        server = await nursery.start(serve, services, TcpAddress("127.0.0.1", 0))
        async with open_channel(server.address) as channel:
            yield channel
        nursery.cancel_scope.cancel()


async def ask(channel: Channel, package: str, messages: ModuleType, **request: Any) -> Any:
    path = f"/{package}.ServerReflection/ServerReflectionInfo"
    types = (messages.ServerReflectionRequest, messages.ServerReflectionResponse)
    with trio.fail_after(5):
        async with channel.stream(path, *types) as stream:
            await stream.send(messages.ServerReflectionRequest(**request), end=True)
            return await stream.recv()


@pytest.mark.parametrize("package, messages", VERSIONS)
async def test_services_are_listed(channel: Channel, package: str, messages: ModuleType):
    answer = await ask(channel, package, messages, list_services="")
    assert [service.name for service in answer.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


@pytest.mark.parametrize("package, messages", VERSIONS)
@pytest.mark.parametrize(
    "request_",
    [
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_by_filename": "inference.proto"},
    ],
)
async def test_a_file_comes_with_all_it_imports(
    channel: Channel, package: str, messages: ModuleType, request_: dict[str, str]
):
    answer = await ask(channel, package, messages, **request_)
    files = [
        FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert files[0].name == "inference.proto"
    pool = DescriptorPool()
    for file in reversed(files):
        pool.Add(file)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert service.FindMethodByName("ModelInfer") is not None


@pytest.mark.parametrize("package, messages", VERSIONS)
@pytest.mark.parametrize(
    "request_",
    [
        {"file_containing_symbol": "no.Such"},
        {"file_by_filename": "no.proto"},
        {"all_extension_numbers_of_type": "inference.ModelInferRequest"},
        {},
    ],
)
async def test_what_is_unknown_is_an_error_in_the_answer_and_the_stream_goes_on(
    channel: Channel, package: str, messages: ModuleType, request_: dict[str, str]
):
    path = f"/{package}.ServerReflection/ServerReflectionInfo"
    types = (messages.ServerReflectionRequest, messages.ServerReflectionResponse)
    with trio.fail_after(5):
        async with channel.stream(path, *types) as stream:
            await stream.send(messages.ServerReflectionRequest(host="h", **request_))
            answer = await stream.recv()
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
            assert answer.valid_host == answer.original_request.host == "h"
            await stream.send(messages.ServerReflectionRequest(list_services=""), end=True)
            assert (await stream.recv()).list_services_response is not None
