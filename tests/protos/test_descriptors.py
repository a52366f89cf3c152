"""Names, numbers and types against tritonclient's descriptors, and what reflection hands out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyserve_protos.inference as generated
import betterproto2
from anyserve_protos.descriptors import proto_files
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

KSERVES_OWN = {
    "inference.RepositoryModelLoadResponse": {"model_name": 1, "is_loaded": 2},
    "inference.RepositoryModelUnloadResponse": {"model_name": 1, "is_unloaded": 2},
}
"""Fields, with the numbers of KServe's own protocol, of messages that Triton's has empty."""


def files(pool: Any) -> list[Any]:
    return [pool.FindFileByName(name) for name in proto_files()]


def messages(container: Any) -> Iterator[Descriptor]:
    nested = (
        getattr(container, "nested_types", None)
        or getattr(container, "message_types_by_name", {}).values()
    )
    for message in nested:
        yield message
        yield from messages(message)


def enums(container: Any) -> Iterator[EnumDescriptor]:
    yield from container.enum_types_by_name.values()
    for message in messages(container):
        yield from message.enum_types


def inference_files(pool: Any) -> list[Any]:
    return [pool.FindFileByName(name) for name in ("inference.proto", "model_config.proto")]


def tritons(full_name: str) -> Any:
    for module in (service_pb2, model_config_pb2):
        try:
            return module.DESCRIPTOR.pool.FindMessageTypeByName(full_name)
        except KeyError:
            continue
    raise AssertionError(f"tritonclient has no message {full_name}")


def describe(field: Any) -> tuple[Any, ...]:
    return (
        field.number,
        field.type,
        field.is_repeated,
        field.is_packed,
        field.message_type and field.message_type.full_name,
        field.enum_type and field.enum_type.full_name,
        field.containing_oneof and field.containing_oneof.name,
        field.has_presence,
    )


def test_every_message_and_field_is_on_the_wire_as_in_tritonclient(pool: Any) -> None:
    count = 0
    for file in inference_files(pool):
        for message in messages(file):
            theirs = tritons(message.full_name)
            if message.full_name in KSERVES_OWN:
                assert not theirs.fields
                assert {f.name: f.number for f in message.fields} == KSERVES_OWN[message.full_name]
                continue
            for field in message.fields:
                assert describe(field) == describe(theirs.fields_by_name[field.name]), field.name
                count += 1
    assert count > 200


def test_the_service_protocol_is_declared_whole(pool: Any) -> None:
    ours = {m.full_name for m in messages(pool.FindFileByName("inference.proto"))}
    theirs = {m.full_name for m in messages(service_pb2.DESCRIPTOR)}
    assert ours == theirs
    for name in ours - KSERVES_OWN.keys():
        mine = pool.FindMessageTypeByName(name)
        assert mine.fields_by_name.keys() == tritons(name).fields_by_name.keys()


def test_every_enum_has_tritonclients_numbers(pool: Any) -> None:
    found = [enum for file in inference_files(pool) for enum in enums(file)]
    assert len(found) == 3
    for enum in found:
        theirs = model_config_pb2.DESCRIPTOR.pool.FindEnumTypeByName(enum.full_name)
        assert [(v.name, v.number) for v in enum.values] == [
            (v.name, v.number) for v in theirs.values
        ]


def test_every_method_is_called_as_tritonclient_calls_it(pool: Any) -> None:
    def methods(file: Any) -> list[tuple[Any, ...]]:
        return sorted(
            (
                *(m.full_name, m.input_type.full_name, m.output_type.full_name),
                *(m.client_streaming, m.server_streaming),
            )
            for m in file.services_by_name["GRPCInferenceService"].methods
        )

    assert methods(pool.FindFileByName("inference.proto")) == methods(service_pb2.DESCRIPTOR)


def test_the_generated_classes_have_the_numbers_of_the_descriptors(pool: Any) -> None:
    for file in inference_files(pool):
        for message in messages(file):
            if message.GetOptions().map_entry:
                continue
            name = message.full_name.removeprefix("inference.").replace(".", "")
            cls: Any = getattr(generated, name)
            assert issubclass(cls, betterproto2.Message)
            meta = cls._betterproto.meta_by_field_name
            assert {key: m.number for key, m in meta.items()} == {
                field.name: field.number for field in message.fields
            }


def test_kserves_own_load_request_leaves_the_model_in_the_repositorys_field() -> None:
    kserves = b"\x0a\x04echo"  # field 1, model_name there
    message = generated.RepositoryModelLoadRequest.parse(kserves)
    assert (message.repository_name, message.model_name) == ("echo", "")


def test_a_file_knows_its_services_and_imports() -> None:
    loaded = proto_files()
    assert loaded["inference.proto"].imports == ("model_config.proto",)
    assert sorted(name for file in loaded.values() for name in file.services) == [
        "anyserve.v1.Admin",
        "anyserve.v1.Scheduler",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    for name, file in loaded.items():
        parsed = descriptor_pb2.FileDescriptorProto.FromString(file.data)
        assert (parsed.name, tuple(parsed.dependency)) == (name, file.imports)


def test_a_file_knows_every_name_that_it_declares(pool: Any) -> None:
    for file in files(pool):
        expected = set()
        for message in messages(file):
            expected |= {message.full_name, *(f.full_name for f in message.fields)}
            expected |= {oneof.full_name for oneof in message.oneofs}
        for enum in enums(file):
            scope = enum.full_name.rpartition(".")[0]
            expected |= {enum.full_name, *(f"{scope}.{v.name}" for v in enum.values)}
        for service in file.services_by_name.values():
            expected |= {service.full_name, *(m.full_name for m in service.methods)}
        assert proto_files()[file.name].symbols == expected
