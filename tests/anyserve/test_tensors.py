"""KServe tensors and numpy arrays: round trips, tritonclient's encoding, and every refusal."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from anyserve_protos.infer_request import InferRequest, InputTensor, decode_request
from anyserve_protos.infer_wire import response_pieces, scan_request
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient import grpc as tritonclient
from tritonclient import utils
from tritonclient.grpc import service_pb2

from anyserve import tensors
from anyserve.errors import InvalidArgument

NUMBERS = {
    "BOOL": np.bool_,
    **{
        f"{kind.upper()}{bits}": f"{kind}{bits}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}
DATATYPES = [*NUMBERS, "BYTES"]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ELEMENT = st.binary(max_size=9) | st.text(max_size=5) | st.just(b"\x00" * 4)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of every datatype, in native or foreign byte order, sometimes not contiguous."""
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        array = np.empty(math.prod(shape), np.object_)
        array[:] = draw(st.lists(ELEMENT, min_size=array.size, max_size=array.size))
        array = array.reshape(shape)
    elif datatype == "BF16":
        array = draw(npst.arrays(np.float32, shape)).astype(ml_dtypes.bfloat16)
    else:
        array = draw(npst.arrays(np.dtype(NUMBERS[datatype]), shape))
        if draw(st.booleans()):
            array = array.astype(array.dtype.newbyteorder(">"))
    if array.ndim and draw(st.booleans()):
        array = array.T if draw(st.booleans()) else array[::-1]
    return datatype, array


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, NaN included."""
    if left.dtype == np.object_:
        as_bytes = [e.encode() if isinstance(e, str) else e for e in right.reshape(-1)]
        return bool(left.shape == right.shape and list(left.reshape(-1)) == as_bytes)
    equal = left.tobytes() == right.astype(left.dtype).tobytes()
    return bool(equal and left.shape == right.shape)


@given(arrays())
@settings(max_examples=300, deadline=None)
def test_an_array_of_any_datatype_comes_back_as_it_was(pair: Any) -> None:
    datatype, array = pair
    encoded, shape, raw = tensors.encode_raw(array)
    assert (encoded, shape) == (datatype, array.shape)
    back = tensors.decode_raw("input 'x'", encoded, shape, bytes(raw))
    assert back.dtype == tensors.numpy_dtype(datatype)
    assert not back.flags.writeable
    assert same(back, array)


@given(arrays())
@settings(max_examples=200, deadline=None)
def test_raw_contents_are_what_tritonclient_sends_and_reads(pair: Any) -> None:
    datatype, array = pair
    their_input = tritonclient.InferInput("x", list(array.shape), datatype)
    their_input.set_data_from_numpy(array.astype(tensors.numpy_dtype(datatype)))
    _, shape, raw = tensors.encode_raw(array)
    if array.size:
        assert bytes(raw) == their_input._get_content()
    reply = service_pb2.ModelInferResponse.FromString(b"".join(response_pieces(b"", [raw])))
    reply.outputs.add(name="x", datatype=datatype, shape=shape)
    got = tritonclient.InferResult(reply).as_numpy("x")
    assert same(got.reshape(array.shape), array)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_datatype_and_its_dtype_name_each_other(datatype: str) -> None:
    assert tensors.datatype_of(np.empty(1, tensors.numpy_dtype(datatype))) == datatype
    assert tensors.numpy_dtype(datatype) == utils.triton_to_np_dtype(datatype)


@pytest.mark.parametrize("dtype", ["S3", "U3", np.dtypes.StringDType()])
def test_strings_of_any_kind_are_bytes(dtype: Any) -> None:
    array = np.array(["a", "bc"], dtype)
    datatype, shape, raw = tensors.encode_raw(array)
    assert (datatype, shape) == ("BYTES", (2,))
    assert list(tensors.decode_raw("x", datatype, shape, raw)) == [b"a", b"bc"]


@pytest.mark.parametrize("elements", [[b""], [b"\x00"], ["ü".encode()], [b"x" * 70_000, b""]])
def test_bytes_elements_of_any_length_and_content_pass(elements: list[bytes]) -> None:
    array = np.array(elements, np.object_)
    datatype, shape, raw = tensors.encode_raw(array)
    assert raw == utils.serialize_byte_tensor(array).item()
    assert list(tensors.decode_raw("x", datatype, shape, raw)) == elements


@pytest.mark.parametrize("array", [np.zeros(2, np.complex64), np.zeros(2, "datetime64[s]")])
def test_an_array_without_a_datatype_is_refused(array: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"arrays of {array.dtype}".replace("[", r"\[")):
        tensors.encode_raw(array)


@pytest.mark.parametrize(
    "element, wrong", [(7, "not int"), (None, "not NoneType"), ("\ud800", "UTF-8")]
)
def test_an_object_array_holds_strings_alone(element: Any, wrong: str) -> None:
    array = np.empty(1, np.object_)
    array[0] = element
    with pytest.raises(InvalidArgument, match=wrong):
        tensors.encode_raw(array)


def test_numbers_are_copied_neither_in_nor_out() -> None:
    array = np.arange(1 << 20, dtype=np.float32)
    tracemalloc.start()
    try:
        datatype, shape, raw = tensors.encode_raw(array)
        back = tensors.decode_raw("x", datatype, shape, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000
    assert np.shares_memory(back, array)
    assert len(raw) == array.nbytes


def test_a_scalar_is_one_element() -> None:
    assert tensors.element_count([]) == 1
    scalar = tensors.decode_raw("x", "INT32", [], b"\x07\x00\x00\x00")
    assert (scalar.shape, scalar.item()) == ((), 7)
    assert tensors.decode_contents("x", "INT32", [], {"int_contents": [7]}).item() == 7


def test_a_view_may_start_anywhere() -> None:
    raw = memoryview(b"?" + np.arange(3, dtype=np.int64).tobytes())[1:]
    assert tensors.decode_raw("x", "INT64", [3], raw).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "shape, wrong",
    [
        ([-1], "negative"),
        ([2, -3], "negative"),
        ([1 << 40, 1 << 40], "too large"),
        ([0, 1 << 40, 1 << 40], "too large"),
        ([1 << 62], "too large"),
        ([1] * 65, "65 dimensions"),
    ],
)
@pytest.mark.parametrize("datatype", ["FP64", "BYTES"])
def test_a_shape_that_no_array_has_is_refused(datatype: str, shape: list[int], wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^input 'x': shape.*{wrong}"):
        tensors.decode_raw("input 'x'", datatype, shape, b"")
    with pytest.raises(InvalidArgument, match=f"^input 'x': shape.*{wrong}"):
        tensors.decode_contents("input 'x'", datatype, shape, {})


@given(st.lists(st.integers(-2, 1 << 62), max_size=70))
def test_any_shape_is_counted_or_refused(shape: list[int]) -> None:
    try:
        count = tensors.element_count(shape)
    except InvalidArgument:
        return
    assert np.broadcast_to(np.empty((), np.int64), shape).size == count


@pytest.mark.parametrize("datatype", ["", "FP8", "float32", "STRING", "TYPE_FP32"])
def test_an_unknown_datatype_is_refused_by_name(datatype: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^input 'x': datatype '{datatype}' is none of BOOL"):
        tensors.decode_raw("input 'x'", datatype, [1], b"")


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("extra", [-1, 1])
def test_raw_numbers_of_another_length_are_refused(datatype: str, extra: int) -> None:
    size = 6 * tensors.numpy_dtype(datatype).itemsize
    with pytest.raises(InvalidArgument, match=rf"input 'x': {size + extra} bytes .* has {size}"):
        tensors.decode_raw("input 'x'", datatype, [2, 3], bytes(size + extra))


@pytest.mark.parametrize("size", [1, 2, 64, 65, 5000])
@pytest.mark.parametrize("bad", [2, 255])
def test_raw_booleans_are_0_or_1(size: int, bad: int) -> None:
    raw = bytearray(number % 3 % 2 for number in range(size))
    array = tensors.decode_raw("x", "BOOL", [size], bytes(raw))
    assert array.tolist() == list(map(bool, raw))
    for place in {0, size // 2, size - 1}:
        wrong = raw.copy()
        wrong[place] = bad
        with pytest.raises(InvalidArgument, match="neither 0 nor 1"):
            tensors.decode_raw("x", "BOOL", [size], memoryview(wrong))


def framed(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


@pytest.mark.parametrize(
    "raw, wrong",
    [
        (b"", "0 elements of BYTES, not 2"),
        (framed(b"ab"), "1 elements of BYTES, not 2"),
        (framed(b"ab") + b"\x01\x00", "1 elements of BYTES, not 2"),
        (framed(b"ab") + b"\x03\x00\x00\x00cd", "element 1 of BYTES has 3 bytes .* 2 are left"),
        (framed(b"ab") + b"\xff\xff\xff\xff", "element 1 of BYTES has 4294967295 bytes"),
        (framed(b"ab", b"c", b""), "4 bytes behind the 2 elements"),
        (framed(b"ab", b"c") + b"?", "1 bytes behind the 2 elements"),
    ],
)
def test_badly_framed_bytes_are_refused(raw: bytes, wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=f"input 'x': {wrong}"):
        tensors.decode_raw("input 'x'", "BYTES", [2], raw)


def test_bytes_that_are_not_there_are_not_allocated() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            tensors.decode_raw("x", "BYTES", [1 << 50], framed(b"one"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_elements_or_refused(raw: bytes, count: int) -> None:
    try:
        array = tensors.decode_raw("x", "BYTES", [count], raw)
    except InvalidArgument:
        return
    assert framed(*array) == raw


FIELDS: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(1 << 15), (1 << 15) - 1]),
    "INT32": ("int_contents", [-(1 << 31), (1 << 31) - 1]),
    "INT64": ("int64_contents", [-(1 << 63), (1 << 63) - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, (1 << 16) - 1]),
    "UINT32": ("uint_contents", [0, (1 << 32) - 1]),
    "UINT64": ("uint64_contents", [0, (1 << 64) - 1]),
    "FP16": ("fp32_contents", [-65504.0, math.inf]),
    "BF16": ("fp32_contents", [1.0, -math.inf]),
    "FP32": ("fp32_contents", [0.5, -math.inf]),
    "FP64": ("fp64_contents", [1e300, -0.0]),
    "BYTES": ("bytes_contents", [b"", b"\x00"]),
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_typed_contents_of_each_datatype_become_its_array(datatype: str) -> None:
    field, values = FIELDS[datatype]
    sent = service_pb2.ModelInferRequest()
    sent.inputs.add().contents.MergeFrom(service_pb2.InferTensorContents(**{field: values}))
    (tensor,) = decode_request(sent.SerializeToString()).inputs
    array = tensors.decode_contents("x", datatype, [2, 1], tensor.contents)
    assert (array.dtype, array.shape) == (tensors.numpy_dtype(datatype), (2, 1))
    assert array.reshape(-1).tolist() == values
    assert not array.flags.writeable


@pytest.mark.parametrize("datatype", DATATYPES)
def test_typed_contents_must_fill_their_own_field_alone_and_exactly(datatype: str) -> None:
    field, values = FIELDS[datatype]
    wrong = "int64_contents" if field != "int64_contents" else "int_contents"
    one = {field: values[:1]}
    with pytest.raises(InvalidArgument, match=f"input 'x': 1 elements in {field}, .* has 2"):
        tensors.decode_contents("input 'x'", datatype, [2], one)
    for contents in ({wrong: [1, 2]}, {field: values, wrong: [1, 2]}):
        with pytest.raises(InvalidArgument, match=f"contents are in {wrong}; {datatype} has"):
            tensors.decode_contents("input 'x'", datatype, [2], contents)


@pytest.mark.parametrize(
    "datatype, field, value",
    [
        ("INT8", "int_contents", 128),
        ("INT16", "int_contents", -(1 << 15) - 1),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 1 << 16),
        ("FP16", "fp32_contents", 65520.0),
        ("BF16", "fp32_contents", float(np.finfo(np.float32).max)),
    ],
)
def test_a_typed_element_out_of_range_is_refused(datatype: str, field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="input 'x': an element is out of range"):
        tensors.decode_contents("input 'x'", datatype, [1], {field: [value]})


def tensor(name: str, **changes: Any) -> InputTensor:
    values = {"datatype": "INT8", "shape": [2], **changes}
    return InputTensor(name=name, **values)


TYPED = {"int_contents": [1, 2]}
IN_REGION = {"shared_memory_region": "mine"}


def test_inputs_are_decoded_raw_typed_and_from_shared_memory() -> None:
    raw = InferRequest(
        inputs=[tensor("a"), tensor("b", parameters=IN_REGION), tensor("c", shape=[0])]
    )
    arrays = tensors.decode_inputs(raw, [b"\x01\x02", b""], {"b": b"\x03\x04"})
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "a": [1, 2],
        "b": [3, 4],
        "c": [],
    }
    typed = InferRequest(
        inputs=[
            tensor("a", contents=TYPED),
            tensor("b", parameters=IN_REGION),
            tensor("c", shape=[0]),
        ]
    )
    arrays = tensors.decode_inputs(typed, [], {"b": b"\x03\x04"})
    assert [array.tolist() for array in arrays.values()] == [[1, 2], [3, 4], []]


def test_a_request_without_inputs_has_none() -> None:
    assert tensors.decode_inputs(InferRequest(), [], {}) == {}


@pytest.mark.parametrize(
    "inputs, raw, wrong",
    [
        ([tensor("")], [b"\x01\x02"], "an input has no name"),
        ([tensor("a"), tensor("a")], [b"\x01\x02"] * 2, "input 'a' is there twice"),
        (
            [tensor("a", contents=TYPED)],
            [b"\x01\x02"],
            "input 'a': .* both raw and in int_contents",
        ),
        ([tensor("a")], [], "input 'a' has no contents"),
        ([tensor("a", contents={})], [], "input 'a' has no contents"),
        ([tensor("a"), tensor("b", contents=TYPED)], [b"\x01\x02"], "1 entries for 2 inputs"),
        ([tensor("a")], [b"\x01\x02", b"\x03"], "2 entries for 1 inputs"),
        ([], [b""], "1 entries for 0 inputs"),
        ([tensor("a", parameters=IN_REGION)], [b"\x01\x02"], "1 entries for 0 inputs"),
        (
            [tensor("a", parameters=IN_REGION, contents=TYPED)],
            [],
            "input 'a': .* both in shared memory and in int_contents",
        ),
        ([tensor("a")], [b"\x01"], "input 'a': 1 bytes of raw contents, but INT8"),
        ([tensor("a", datatype="INT9")], [b"\x01"], "input 'a': datatype 'INT9'"),
        ([tensor("a", shape=[-2])], [], r"input 'a': shape \[-2\] has a negative"),
        ([tensor("a", shape=[3], contents=TYPED)], [], "input 'a': 2 elements in int_contents"),
    ],
)
def test_a_request_with_wrong_inputs_is_refused_naming_what_is_wrong(
    inputs: Any, raw: Any, wrong: str
) -> None:
    with pytest.raises(InvalidArgument, match=wrong):
        tensors.decode_inputs(InferRequest(inputs=inputs), raw, {"a": b"\x01\x02"})


def test_a_request_of_tritonclient_is_decoded_as_it_was_built() -> None:
    values = {
        "text": np.array([["héllo".encode()], [b""]], np.object_),
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
        "half": np.array([0.5, -2.0], np.float16),
    }
    inputs = []
    for name, array in values.items():
        entry = tritonclient.InferInput(
            name, list(array.shape), utils.np_to_triton_dtype(array.dtype)
        )
        entry.set_data_from_numpy(array)
        inputs.append(entry)
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.extend(entry._get_tensor() for entry in inputs)
    request.raw_input_contents.extend(entry._get_content() for entry in inputs)
    scanned = scan_request(request.SerializeToString())
    arrays = tensors.decode_inputs(decode_request(scanned.head), scanned.raw, {})
    assert arrays.keys() == values.keys()
    for name, array in values.items():
        assert same(arrays[name], array)
