"""A request is read for its handler as Google's protobuf and the strict decoder read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyserve_protos.inference as pb
import pytest
from anyserve_protos.codec import decode
from anyserve_protos.infer_request import MAX_FIELDS, InferRequest, decode_request
from anyserve_protos.wire import WireError, encode_varint
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

CONTENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(1 << 31), (1 << 31) - 1),
    "int64_contents": st.integers(-(1 << 63), (1 << 63) - 1),
    "uint_contents": st.integers(0, (1 << 32) - 1),
    "uint64_contents": st.integers(0, (1 << 64) - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=5),
}
CHOICES = {
    "bool_param": st.booleans(),
    "int64_param": CONTENTS["int64_contents"],
    "string_param": st.text(max_size=5),
    "double_param": st.floats(),
    "uint64_param": CONTENTS["uint64_contents"],
}


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Requests with all that a head can hold."""

    def fill(parameters: Any) -> None:
        for key in draw(st.lists(st.text(max_size=4), max_size=2)):
            choice = draw(st.sampled_from([None, *CHOICES]))
            parameters[key].Clear()
            if choice is not None:
                setattr(parameters[key], choice, draw(CHOICES[choice]))

    text = st.text(max_size=5)
    request = service_pb2.ModelInferRequest(
        model_name=draw(text), model_version=draw(text), id=draw(text)
    )
    fill(request.parameters)
    for _ in range(draw(st.integers(0, 3))):
        shape = draw(st.lists(st.integers(-2, 1 << 40), max_size=4))
        tensor = request.inputs.add(name=draw(text), datatype=draw(text), shape=shape)
        fill(tensor.parameters)
        for name in draw(st.lists(st.sampled_from([*CONTENTS]), max_size=2)):
            getattr(tensor.contents, name).extend(draw(st.lists(CONTENTS[name], max_size=200)))
    for _ in range(draw(st.integers(0, 2))):
        fill(request.outputs.add(name=draw(text)).parameters)
    return request


def parameters_of(holder: Any) -> dict[str, Any]:
    return {
        key: getattr(value, choice)
        for key, value in holder.parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }


def shown(request: InferRequest) -> str:
    """A request in a form to compare, since NaN is not NaN; parameters have no order."""
    return repr(
        (
            request.id,
            sorted(request.parameters.items()),
            [
                (
                    *(tensor.name, tensor.datatype, list(tensor.shape)),
                    sorted(tensor.parameters.items()),
                    {name: list(tensor.contents[name]) for name in sorted(tensor.contents)},
                )
                for tensor in request.inputs
            ],
            [(output.name, sorted(output.parameters.items())) for output in request.outputs],
        )
    )


def googles(request: Any) -> str:
    return repr(
        (
            request.id,
            sorted(parameters_of(request).items()),
            [
                (
                    *(tensor.name, tensor.datatype, list(tensor.shape)),
                    sorted(parameters_of(tensor).items()),
                    {
                        name: list(values)
                        for name in sorted(CONTENTS)
                        if (values := getattr(tensor.contents, name))
                    },
                )
                for tensor in request.inputs
            ],
            [(output.name, sorted(parameters_of(output).items())) for output in request.outputs],
        )
    )


@given(requests())
@settings(max_examples=200, deadline=None)
def test_all_that_a_head_can_hold_is_read(request: Any) -> None:
    assert shown(decode_request(request.SerializeToString())) == googles(request)


@given(requests(), requests())
@settings(max_examples=100, deadline=None)
def test_a_request_that_comes_in_two_parts_is_merged(first: Any, second: Any) -> None:
    data = first.SerializeToString() + second.SerializeToString()
    assert shown(decode_request(data)) == googles(service_pb2.ModelInferRequest.FromString(data))


def test_any_bytes_are_read_as_the_strict_decoder_reads_them(
    encodings: st.SearchStrategy[bytes], keeps_an_entry_apart: Callable[[Any], bool]
) -> None:
    @given(encodings)
    @settings(max_examples=1500, deadline=None)
    def check(data: bytes) -> None:
        try:
            request = decode_request(data)
        except WireError as error:
            with pytest.raises(WireError):
                decode(pb.ModelInferRequest, data)
            if "group" not in str(error):
                with pytest.raises(DecodeError):
                    service_pb2.ModelInferRequest.FromString(data)
        else:
            decode(pb.ModelInferRequest, data)
            theirs = service_pb2.ModelInferRequest.FromString(data)
            assert shown(request) == googles(theirs) or keeps_an_entry_apart(theirs)

    check()


def part(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return bytes((tag,)) + encode_varint(len(content)) + content


def test_numbers_may_be_packed_or_not_and_come_apart() -> None:
    unpacked = part(0x2A, b"\x18\x02", part(0x2A, b"\x10\x01", b"\x10\x02"), b"\x18\x03")
    packed = part(0x2A, part(0x1A, b"\x02\x03"), part(0x2A, part(0x12, b"\x01\x02")))
    apart = part(
        0x2A, b"\x18\x02", part(0x2A, b"\x10\x01"), part(0x1A, b"\x03"), part(0x2A, b"\x10\x02")
    )
    for data in (unpacked, packed, apart):
        (tensor,) = decode_request(data).inputs
        assert list(tensor.shape) == [2, 3]
        assert tensor.contents == {"int_contents": [1, 2]}


def test_a_parameter_that_comes_again_counts_as_it_came_last() -> None:
    entry = [
        part(0x22, part(0x0A, b"k"), part(0x12, value)) for value in (b"\x10\x07", b"\x08\x01")
    ]
    assert decode_request(b"".join(entry)).parameters == {"k": True}
    empty = part(0x22, part(0x0A, b"k"))
    assert decode_request(entry[0] + empty).parameters == {}


def test_a_field_of_another_wire_type_is_unknown() -> None:
    request = decode_request(b"\x18\x05" + b"\x28\x05" + part(0x1A, b"id"))
    assert shown(request) == shown(InferRequest(id="id"))


@pytest.mark.parametrize(
    "piece",
    [
        part(0x1A),
        part(0x2A, b"\x18\x01"),
        part(0x2A, part(0x2A, b"\x10\x01")),
        part(0x22, part(0x12, b"\x10\x01")),
        part(0x32, part(0x12)),
        b"\xf8\x07\x00",
    ],
    ids=["strings", "shapes", "contents", "parameters", "outputs", "unknown"],
)
def test_the_fields_of_a_request_are_bounded_together(piece: bytes) -> None:
    decode_request(piece * (MAX_FIELDS // 3))
    with pytest.raises(WireError, match="262144 fields"):
        decode_request(piece * (MAX_FIELDS + 1) + b"\x02")


@pytest.mark.parametrize("field", [0x0A, 0x12, 0x1A])
def test_a_string_that_is_not_utf8_is_refused(field: int) -> None:
    with pytest.raises(WireError, match="UTF-8"):
        decode_request(part(field, b"\xc3\x28"))
