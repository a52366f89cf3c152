"""The strict decoder decodes as Google's protobuf does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyserve_protos.inference as pb
import betterproto2
import numpy as np
import pytest
from anyserve_protos.anyserve.v1 import Node
from anyserve_protos.codec import MAX_DEPTH, MAX_FIELDS, decode
from anyserve_protos.grpc.health.v1 import HealthCheckResponse
from anyserve_protos.wire import WireError
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

TYPES = {
    "inference.ModelInferRequest": pb.ModelInferRequest,
    "inference.ModelStreamInferResponse": pb.ModelStreamInferResponse,
    "inference.InferTensorContents": pb.InferTensorContents,
    "inference.InferParameter": pb.InferParameter,
    "inference.RepositoryModelLoadRequest": pb.RepositoryModelLoadRequest,
    "inference.ModelConfig": pb.ModelConfig,
    "inference.ModelInput": pb.ModelInput,
    "anyserve.v1.Node": Node,
    "grpc.health.v1.HealthCheckResponse": HealthCheckResponse,
}


def same(message: betterproto2.Message, googles: Any) -> bool:
    """Whether both hold the same, compared as what they serialise to, for NaN is not NaN."""
    ours = type(googles).FromString(bytes(message))
    googles.DiscardUnknownFields()
    return bool(
        ours.SerializeToString(deterministic=True) == googles.SerializeToString(deterministic=True)
    )


def has_group(error: WireError) -> bool:
    return "group" in str(error)


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_decode_as_with_googles_protobuf_or_are_refused_as_there(
    name: str,
    pool: Any,
    encodings: st.SearchStrategy[bytes],
    keeps_an_entry_apart: Callable[[Any], bool],
) -> None:
    ours: Any = TYPES[name]
    googles = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

    @settings(max_examples=200, deadline=None)
    @given(encodings)
    def check(data: bytes) -> None:
        try:
            message = decode(ours, data)
        except WireError as error:
            if not has_group(error):
                with pytest.raises(DecodeError):
                    googles.FromString(data)
        else:
            theirs = googles.FromString(data)
            assert same(message, theirs) or keeps_an_entry_apart(googles.FromString(data))

    check()


@given(
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=300),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=300),
    st.lists(st.booleans(), max_size=300),
)
@settings(max_examples=60, deadline=None)
def test_packed_numbers_are_what_was_packed(
    ints: list[int], longs: list[int], flags: list[bool]
) -> None:
    sent = service_pb2.InferTensorContents(
        int_contents=ints, uint64_contents=longs, bool_contents=flags
    )
    got = decode(pb.InferTensorContents, sent.SerializeToString())
    assert (got.int_contents, got.uint64_contents, got.bool_contents) == (ints, longs, flags)


@pytest.mark.parametrize(
    "name, dtype", [("int64_contents", np.int64), ("uint_contents", np.uint32)]
)
def test_many_packed_numbers_are_read_in_parts(name: str, dtype: Any) -> None:
    info = np.iinfo(dtype)
    numbers = np.random.default_rng(7).integers(info.min, info.max, 50_000, dtype).tolist()
    sent = service_pb2.InferTensorContents(**{name: numbers}).SerializeToString()
    assert len(sent) > 3 * 65_536
    assert getattr(decode(pb.InferTensorContents, sent), name) == numbers


@pytest.mark.parametrize("size", [5, 300, 70_000])
@pytest.mark.parametrize("end", [b"\x80", b"\x80" * 10 + b"\x01"])
def test_packed_numbers_that_end_badly_are_refused(size: int, end: bytes) -> None:
    packed = b"\x81\x01" * size + end
    data = b"\x1a" + length(packed) + packed
    with pytest.raises(WireError):
        decode(pb.InferTensorContents, data)
    with pytest.raises(DecodeError):
        service_pb2.InferTensorContents.FromString(data)


def length(data: bytes) -> bytes:
    encoded = bytearray()
    size = len(data)
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])


@pytest.mark.parametrize("field, size", [(b"\x32", 4), (b"\x3a", 8)])
def test_packed_floats_with_a_rest_are_refused(field: bytes, size: int) -> None:
    with pytest.raises(WireError, match="cut short"):
        decode(pb.InferTensorContents, field + bytes((size + 1,)) + bytes(size + 1))


def test_parts_of_a_message_that_come_apart_are_merged() -> None:
    first = pb.ModelInferRequestInferInputTensor(contents=pb.InferTensorContents(int_contents=[1]))
    second = pb.ModelInferRequestInferInputTensor(contents=pb.InferTensorContents(int_contents=[2]))
    merged = decode(pb.ModelInferRequestInferInputTensor, bytes(first) + bytes(second))
    assert merged.contents == pb.InferTensorContents(int_contents=[1, 2])


def test_the_last_member_of_a_oneof_counts_alone() -> None:
    both = bytes(pb.InferParameter(int64_param=3)) + bytes(pb.InferParameter(string_param="x"))
    assert decode(pb.InferParameter, both) == pb.InferParameter(string_param="x")


def test_a_group_is_refused_and_not_read_as_fields_of_its_own() -> None:
    group = b"\x53\x0a\x04evil\x54"  # field 10
    assert pb.ModelReadyRequest.parse(group).name == "evil"  # what betterproto2 makes of it
    with pytest.raises(WireError, match="group"):
        decode(pb.ModelReadyRequest, group)


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WireError, match="UTF-8"):
        decode(pb.ModelReadyRequest, b"\x0a\x02\xc3\x28")


def test_an_enum_keeps_numbers_that_it_does_not_know() -> None:
    assert decode(HealthCheckResponse, b"\x08\x2a").status == 42


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = b"\x52" + length(data) + data
    return data


def test_messages_nest_up_to_a_bound() -> None:
    node = decode(Node, nested(MAX_DEPTH))
    for _ in range(MAX_DEPTH):
        (node,) = node.children
    with pytest.raises(WireError, match="nested"):
        decode(Node, nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "part",
    [b"\x0a\x00", b"\x2a\x00", b"\x2a\x02\x18\x01", b"\x22\x02\x0a\x00", b"\xf8\x07\x00"],
    ids=["strings", "messages", "inside messages", "map entries", "unknown"],
)
def test_the_fields_of_a_message_are_bounded_together(part: bytes) -> None:
    decode(pb.ModelInferRequest, part * (MAX_FIELDS // 2))
    with pytest.raises(WireError, match="262144 fields"):
        decode(pb.ModelInferRequest, part * (MAX_FIELDS + 1) + b"\x02")


def test_packed_numbers_are_one_field() -> None:
    contents = pb.InferTensorContents(fp32_contents=[1.5] * (MAX_FIELDS + 1))
    assert decode(pb.InferTensorContents, bytes(contents)) == contents


def test_any_flat_buffer_can_be_decoded() -> None:
    data = bytes(pb.ModelReadyRequest(name="echo", version="1"))
    for buffer in (data, bytearray(data), memoryview(data)):
        assert decode(pb.ModelReadyRequest, buffer) == pb.ModelReadyRequest("echo", "1")
