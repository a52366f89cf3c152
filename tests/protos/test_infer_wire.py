"""Requests taken apart and joined unparsed are what Google's protobuf and betterproto2 read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from anyserve_protos.infer_request import decode_request
from anyserve_protos.infer_wire import (
    MAX_FIELDS,
    InferRequestHead,
    WireError,
    join_request,
    response_pieces,
    scan_request,
    scan_tensor_names,
    scan_tensor_parameters,
    stream_response,
)
from anyserve_protos.inference import (
    InferParameter,
    ModelInferRequest,
    ModelInferRequestInferInputTensor,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from anyserve_protos.wire import encode_varint
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

TEXT = st.text(max_size=8)
PARAMETER = st.one_of(
    st.builds(lambda v: service_pb2.InferParameter(bool_param=v), st.booleans()),
    st.builds(
        lambda v: service_pb2.InferParameter(int64_param=v), st.integers(-(1 << 63), (1 << 63) - 1)
    ),
    st.builds(lambda v: service_pb2.InferParameter(string_param=v), TEXT),
    st.builds(lambda v: service_pb2.InferParameter(double_param=v), st.floats(allow_nan=False)),
    st.builds(lambda v: service_pb2.InferParameter(uint64_param=v), st.integers(0, (1 << 64) - 1)),
    st.just(service_pb2.InferParameter()),
)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Requests as clients build them."""
    request = service_pb2.ModelInferRequest(
        model_name=draw(TEXT), model_version=draw(TEXT), id=draw(TEXT)
    )
    for key, value in draw(st.dictionaries(TEXT, PARAMETER, max_size=3)).items():
        request.parameters[key].CopyFrom(value)
    for name in draw(st.lists(TEXT, max_size=3)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=draw(SHAPES))
        tensor.contents.int_contents.extend(draw(st.lists(st.integers(-9, 999), max_size=3)))
        for key, value in draw(st.dictionaries(TEXT, PARAMETER, max_size=2)).items():
            tensor.parameters[key].CopyFrom(value)
    for name in draw(st.lists(TEXT, max_size=2)):
        request.outputs.add(name=name).parameters["classification"].int64_param = 2
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=200), max_size=4)))
    return request


SHAPES = st.lists(st.integers(-1, 1 << 40), max_size=4)


def fields_of(data: bytes) -> list[bytes]:
    """The top-level fields of a well-formed message, each as its bytes."""
    found = []
    position = 0
    while position < len(data):
        start, position = position, position + 1
        assert data[start] & 7 == 2
        length = shift = 0
        while True:
            byte = data[position]
            length |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        position += length
        found.append(data[start:position])
    return found


def parameters_of(request: Any) -> dict[str, Any]:
    return {
        key: getattr(value, choice)
        for key, value in request.parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }


def agrees(scanned: InferRequestHead, request: Any) -> bool:
    return repr(
        (
            *(scanned.model_name, scanned.model_version, scanned.id),
            sorted(scanned.parameters.items()),
            [bytes(view) for view in scanned.raw],
        )
    ) == repr(
        (
            *(request.model_name, request.model_version, request.id),
            sorted(parameters_of(request).items()),
            list(request.raw_input_contents),
        )
    )


def without_raw(request: Any) -> Any:
    head = service_pb2.ModelInferRequest()
    head.CopyFrom(request)
    del head.raw_input_contents[:]
    return head


@given(requests(), st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_request_is_taken_apart_whatever_the_order_of_its_fields(
    request: Any, random: Any
) -> None:
    fields = fields_of(request.SerializeToString())
    raw = [field for field in fields if field[0] == 0x3A]
    others = [field for field in fields if field[0] != 0x3A]
    merged = list(others)
    for field, at in zip(raw, sorted(random.randint(0, len(others)) for _ in raw), strict=True):
        merged.insert(at + len(merged) - len(others), field)
    scanned = scan_request(b"".join(merged))
    assert agrees(scanned, request)
    assert scanned.head == b"".join(others)
    assert service_pb2.ModelInferRequest.FromString(scanned.head) == without_raw(request)


@given(requests())
@settings(max_examples=100, deadline=None)
def test_a_request_taken_apart_and_joined_is_the_same(request: Any) -> None:
    scanned = scan_request(request.SerializeToString())
    joined = join_request(scanned.head, scanned.raw)
    assert service_pb2.ModelInferRequest.FromString(joined) == request


@given(requests(), requests())
@settings(max_examples=100, deadline=None)
def test_a_field_that_comes_twice_counts_as_it_came_last(first: Any, second: Any) -> None:
    data = first.SerializeToString() + second.SerializeToString()
    assert agrees(scan_request(data), service_pb2.ModelInferRequest.FromString(data))


def test_any_bytes_are_read_as_by_google_or_refused(
    encodings: st.SearchStrategy[bytes], keeps_an_entry_apart: Callable[[Any], bool]
) -> None:
    @given(encodings)
    @settings(max_examples=1500, deadline=None)
    def check(data: bytes) -> None:
        try:
            scanned = scan_request(data)
            decode_request(scanned.head)
        except WireError as error:
            if "group" not in str(error):
                with pytest.raises(DecodeError):
                    service_pb2.ModelInferRequest.FromString(data)
        else:
            theirs = service_pb2.ModelInferRequest.FromString(data)
            assert agrees(scanned, theirs) or keeps_an_entry_apart(theirs)

    check()


@given(requests(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_request_that_is_cut_short_is_refused_where_google_refuses_it(
    request: Any, data: st.DataObject
) -> None:
    whole = request.SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        theirs = service_pb2.ModelInferRequest.FromString(cut)
    except DecodeError:
        with pytest.raises(WireError):
            decode_request(scan_request(cut).head)
    else:
        assert agrees(scan_request(cut), theirs)


def test_a_parameter_that_comes_again_without_a_value_has_none() -> None:
    twice = b"".join(
        bytes(ModelInferRequest(parameters={"n": parameter}))
        for parameter in (InferParameter(int64_param=1), InferParameter())
    )
    assert scan_request(twice).parameters == {}
    assert service_pb2.ModelInferRequest.FromString(twice).parameters["n"].ListFields() == []


def test_unknown_fields_stay_in_the_head() -> None:
    unknown = b"\xa2\x06\x03new" + b"\x98\x06\x05"  # fields 100 and 99
    message = ModelInferRequest(model_name="echo", raw_input_contents=[b"tensor"])
    scanned = scan_request(unknown + bytes(message))
    assert scanned.head == unknown + bytes(ModelInferRequest(model_name="echo"))
    assert (scanned.model_name, [bytes(view) for view in scanned.raw]) == ("echo", [b"tensor"])


def test_a_request_without_raw_contents_is_its_own_head() -> None:
    body = bytes(ModelInferRequest(model_name="echo"))
    assert scan_request(body).head is body


def test_raw_contents_are_views_of_the_message() -> None:
    tensor = bytes(4 << 20)
    request = ModelInferRequest(
        model_name="echo",
        inputs=[ModelInferRequestInferInputTensor(name="x", datatype="UINT8", shape=[len(tensor)])],
        raw_input_contents=[tensor],
    )
    body = bytes(request)
    tracemalloc.start()
    try:
        scanned = scan_request(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000
    (view,) = scanned.raw
    assert view.obj is body
    assert view == tensor


def test_a_message_of_very_many_fields_is_refused_without_reading_it_all() -> None:
    assert len(scan_request(b"\x3a\x00" * MAX_FIELDS).raw) == MAX_FIELDS
    malformed_behind = b"\x3a\x00" * (MAX_FIELDS + 1) + b"\x02"
    with pytest.raises(WireError, match="16384 fields"):
        scan_request(malformed_behind)


@pytest.mark.parametrize(
    "entry",
    [b"\x0a\x00" * MAX_FIELDS, b"\x12" + encode_varint(2 * MAX_FIELDS) + b"\x08\x01" * MAX_FIELDS],
    ids=["an entry of keys", "a value of values"],
)
@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_so_is_a_parameter_of_very_many_fields(entry: bytes, place: str) -> None:
    tag = {"request": b"\x22", "input": b"\x22", "output": b"\x12"}[place]
    body = tag + encode_varint(len(entry)) + entry
    if place == "request":
        scan = scan_request
    else:
        body = {"input": b"\x2a", "output": b"\x32"}[place] + encode_varint(len(body)) + body
        assert scan_request(body).head == body
        scan = scan_tensor_parameters
    with pytest.raises(WireError, match="16384 fields"):
        scan(body + b"\x02")


@given(requests())
@settings(max_examples=200, deadline=None)
def test_the_parameters_of_tensors_are_found_without_their_contents(request: Any) -> None:
    tensors = (*request.inputs, *request.outputs)
    head = scan_request(request.SerializeToString()).head
    assert repr(
        [(name, sorted(found.items())) for name, found in scan_tensor_parameters(head)]
    ) == (repr([(tensor.name, sorted(parameters_of(tensor).items())) for tensor in tensors]))


@pytest.mark.parametrize(
    "body, wrong",
    [
        (b"\x0a", "cut short"),
        (b"\x0a\x05echo", "past the end"),
        (b"\x0a\xff\xff\xff\xff\x0f", "2 GiB"),
        (b"\x0a\xff\xff\xff\xff\x7f", "2 GiB"),
        (b"\xff\xff\xff\xff\x7f", "32 bits"),
        (b"\x8a\x80\x80\x80\x80\x00\x00", "cut short or longer"),
        (b"\x0a\x02\xff\xfe", "UTF-8"),
        (b"\x22\x04\x0a\x02\xff\xfe", "UTF-8"),
        (b"\x22\x03\x0a\x02a", "past the end"),
        (b"\x02\x00", "number 0"),
        (b"\x53\x54", "group"),
        (b"\x0f", "wire type"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "10 bytes"),
        (b"\x09\x00", "past the end"),
    ],
)
def test_a_malformed_request_is_refused_in_words(body: bytes, wrong: str) -> None:
    if wrong != "group":  # Google's parsers take a group for an unknown field
        with pytest.raises(DecodeError):
            service_pb2.ModelInferRequest.FromString(body)
    with pytest.raises(WireError, match=wrong):
        scan_request(body)


@pytest.mark.parametrize(
    "body", [b"\x0a\x81\x80\x80\x80\x80\x80\x00a", b"\x8a\x80\x80\x80\x00\x01a"]
)
def test_a_length_or_tag_may_be_written_longer_than_it_needs_to_be(body: bytes) -> None:
    assert service_pb2.ModelInferRequest.FromString(body).model_name == "a"
    assert scan_request(body).model_name == "a"


def test_the_error_is_a_value_error() -> None:
    assert issubclass(WireError, ValueError)


RESPONSE = ModelInferResponse(
    model_name="echo", model_version="1", id="7", parameters={"n": InferParameter(int64_param=-1)}
)


@pytest.mark.parametrize("sizes", [[], [0], [0, 3, 127, 128], [70_000]])
def test_a_response_is_joined_of_its_head_and_any_buffers(sizes: list[int]) -> None:
    raw = [bytes(size) for size in sizes]
    buffers = [kind(data) for data in raw for kind in (bytes, bytearray, memoryview)]
    joined = b"".join(response_pieces(bytes(RESPONSE), buffers))
    expected = service_pb2.ModelInferResponse.FromString(bytes(RESPONSE))
    expected.raw_output_contents.extend(data for data in raw for _ in range(3))
    assert service_pb2.ModelInferResponse.FromString(joined) == expected
    streamed = b"".join(stream_response(*response_pieces(bytes(RESPONSE), buffers)))
    assert streamed == b"".join(stream_response(joined))
    assert service_pb2.ModelStreamInferResponse.FromString(streamed) == (
        service_pb2.ModelStreamInferResponse(infer_response=expected)
    )


def test_an_empty_response_is_still_a_response_of_the_stream() -> None:
    message = ModelStreamInferResponse.parse(b"".join(stream_response(b"")))
    assert message.infer_response == ModelInferResponse()
    assert message.error_message == ""


@given(requests())
def test_the_names_of_inputs_and_wanted_outputs_are_read(request: Any) -> None:
    inputs, outputs = scan_tensor_names(request.SerializeToString())
    assert inputs == [tensor.name for tensor in request.inputs]
    assert outputs == [output.name for output in request.outputs]


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x00" * (MAX_FIELDS + 1),
        b"\x2a" + encode_varint(2 * MAX_FIELDS + 2) + b"\x28\x01" * (MAX_FIELDS + 1),
        b"\x2a\x05a",
    ],
    ids=["many fields", "many in one tensor", "cut short"],
)
def test_names_of_what_is_too_long_or_malformed_are_not_read(body: bytes) -> None:
    with pytest.raises(WireError):
        scan_tensor_names(body)
