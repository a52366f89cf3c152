"""Responses on the wire, the first of a form and those that are filled in after it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from anyserve_protos.infer_request import InferRequest, decode_request
from anyserve_protos.inference import (
    ModelInferRequest,
    ModelInferRequestInferRequestedOutputTensor,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from anyserve.capability import Capability
from anyserve.errors import Internal, InvalidArgument
from anyserve.link.frames import LEASE_THRESHOLD
from anyserve.messages import Response
from anyserve.offers import Offer, parse_specs
from anyserve.worker.responses import ResponseEncoder

pb: Any = service_pb2
OFFER = Offer(Capability("speech", {}, "3"))


def asking_for(*outputs: str, identity: str = "") -> InferRequest:
    wanted = [ModelInferRequestInferRequestedOutputTensor(name=name) for name in outputs]
    return decode_request(bytes(ModelInferRequest(id=identity, outputs=wanted)))


def encoded(encoder: ResponseEncoder, **outputs: Any) -> Any:
    """The message as Google's protobuf reads it."""
    return pb.ModelInferResponse.FromString(b"".join(encoder.encode(Response(outputs=outputs))))


# What is expected, the slow way.


def _tensor(value: Any) -> tuple[str, list[int], bytes]:
    if isinstance(value, str | bytes):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[0], str | bytes):
        value = np.array(value, np.object_)
    array = np.asarray(value)
    if not isinstance(value, np.ndarray) and array.ndim == 0:
        array = array.reshape(1)
    if array.dtype.kind in "OSU":
        texts = [v if isinstance(v, bytes) else v.encode() for v in array.flatten().tolist()]
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        return "BYTES", list(array.shape), raw
    if array.dtype == ml_dtypes.bfloat16:
        return "BF16", list(array.shape), array.tobytes()
    little = array.astype(array.dtype.newbyteorder("<"))
    return np_to_triton_dtype(np.dtype(little.dtype)), list(array.shape), little.tobytes("C")


def expected(names: list[str], outputs: dict[str, Any], identity: str) -> Any:
    message = pb.ModelInferResponse(model_name="speech", model_version="3", id=identity)
    for name in names:
        datatype, shape, raw = _tensor(outputs[name])
        message.outputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_output_contents.append(raw)
    return message


# What handlers give.

_kinds = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_dtypes = st.sampled_from(["?", *_kinds, *(">" + kind for kind in _kinds)]).map(np.dtype)
_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9) | st.binary(max_size=200)


@st.composite
def _laid_out(draw: st.DrawFn, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """An array that may be contiguous, transposed, a part of another, or backwards."""
    array = draw(hnp.arrays(dtype, shape))
    how = draw(st.sampled_from(["as it is", "transposed", "spread", "backwards"]))
    if how == "transposed":
        return np.asfortranarray(array)
    if how == "spread" and array.ndim:
        wide = np.zeros((*shape[:-1], shape[-1] * 2), dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if how == "backwards" and array.ndim:
        return array[::-1]
    return array


@st.composite
def _numbers(draw: st.DrawFn) -> list[Any]:
    dtype, shape = draw(_dtypes), draw(_shapes)
    return [draw(_laid_out(dtype, shape)) for _ in range(3)]


def _three(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=3, max_size=3)


_bfloats = hnp.arrays(np.uint16, (2, 2)).map(lambda array: array.view(ml_dtypes.bfloat16))
_mixed = st.one_of(
    _texts,
    st.lists(_texts, max_size=3).filter(bool),
    st.lists(st.integers(-9, 9), max_size=3),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(width=64),
    hnp.arrays(np.dtype("U3"), 2, elements=st.sampled_from(["", "aé", "xyz"])),
    st.lists(_texts, min_size=2, max_size=2).map(lambda texts: np.array(texts, np.object_)),
    st.builds(lambda array: array.astype("S"), hnp.arrays(np.int8, 2)),
)
_values = st.one_of(
    _numbers(), _three(st.text(max_size=3, alphabet="aé€𝄞")), _three(_mixed), _three(_bfloats)
)
"""Values of one output in three responses, mostly of one form."""


@given(
    st.dictionaries(st.sampled_from("abcd"), _values, min_size=1),
    st.data(),
    st.sampled_from(["", "42", "größe"]),
)
def test_each_response_is_what_googles_protobuf_makes_of_it(
    outputs: dict[str, list[Any]], data: st.DataObject, identity: str
):
    names = list(outputs)
    wanted = data.draw(st.just([]) | st.lists(st.sampled_from(names), unique=True))
    encoder = ResponseEncoder(OFFER, asking_for(*wanted, identity=identity))
    for turn in range(3):
        values = {name: each[turn] for name, each in outputs.items()}
        wire = encoded(encoder, **values)
        assert wire == expected(wanted or names, values, identity)
        fresh = ResponseEncoder(OFFER, asking_for(*wanted, identity=identity))
        assert wire == encoded(fresh, **values)


@pytest.mark.parametrize(
    "first, second",
    [
        ({"n": np.arange(3)}, {"n": np.arange(3) * 5}),
        ({"n": np.array(2.0)}, {"n": np.zeros(())}),
        ({"n": np.zeros(0, np.int8)}, {"n": np.zeros(0, np.int8)}),
        ({"text": "one"}, {"text": "another, longer"}),
        ({"text": b""}, {"text": b"\xff\0"}),
        (
            {"n": np.zeros((2, 2), np.uint8), "text": ""},
            {"n": np.eye(2, dtype="u1").T, "text": "x"},
        ),
    ],
)
def test_responses_of_one_form_are_worked_out_once(
    monkeypatch: pytest.MonkeyPatch, first: Any, second: Any
):
    encoder = ResponseEncoder(OFFER, asking_for())
    encoded(encoder, **first)
    monkeypatch.delattr(ResponseEncoder, "_encode")
    assert encoded(encoder, **second) == expected(list(second), second, "")


@pytest.mark.parametrize(
    "second",
    [
        {"n": np.arange(4)},
        {"n": np.arange(3).astype(np.int32)},
        {"n": np.arange(3).astype(">i8")},
        {"n": np.arange(3).reshape(3, 1)},
        {"n": [1, 2, 3]},
        {"n": "text"},
        {"m": np.arange(3)},
        {"n": np.arange(3), "m": 1},
        {},
    ],
    ids=str,
)
def test_a_response_of_another_form_is_not_filled_in(second: Any):
    encoder = ResponseEncoder(OFFER, asking_for())
    encoded(encoder, n=np.arange(3))
    assert encoded(encoder, **second) == expected(list(second), second, "")


def test_a_large_tensor_goes_as_it_lies():
    encoder = ResponseEncoder(OFFER, asking_for())
    large = np.zeros(LEASE_THRESHOLD, np.uint8)
    for _ in range(2):
        pieces = encoder.encode(Response(outputs={"x": large}))
        assert any(np.shares_memory(np.frombuffer(piece, "u1"), large) for piece in pieces)


def test_what_is_filled_in_is_a_copy_that_the_handler_may_write_over():
    encoder = ResponseEncoder(OFFER, asking_for())
    array = np.zeros(4, np.uint8)
    encoder.encode(Response(outputs={"x": array}))
    pieces = encoder.encode(Response(outputs={"x": array}))
    array[:] = 7
    assert pb.ModelInferResponse.FromString(b"".join(pieces)).raw_output_contents == [bytes(4)]


@pytest.mark.parametrize("after", [[], ["text"]], ids=["first", "filled in"])
def test_text_that_is_none_is_refused_in_the_same_words_always(after: list[str]):
    encoder = ResponseEncoder(OFFER, asking_for())
    for text in after:
        encoded(encoder, x=text)
    with pytest.raises(Internal, match="output 'x' can't be encoded: a string is not UTF-8"):
        encoder.encode(Response(outputs={"x": "no \udc80"}))


@pytest.mark.parametrize("after", [[], [1]], ids=["first", "filled in"])
def test_an_output_that_was_asked_for_and_is_not_there_is_refused(after: list[int]):
    encoder = ResponseEncoder(OFFER, asking_for("a", "b"))
    for value in after:
        encoded(encoder, a=np.full(1, value), b=np.zeros(1))
    with pytest.raises(InvalidArgument, match="output 'b': the handler did not give it"):
        encoder.encode(Response(outputs={"a": np.zeros(1, np.int64)}))


def test_what_is_not_declared_is_refused_every_time():
    offer = Offer(Capability("speech"), outputs=parse_specs({"x": "FP32[1]"}))
    encoder = ResponseEncoder(offer, asking_for())
    encoded(encoder, x=np.zeros(1, np.float32))
    for _ in range(2):
        with pytest.raises(Internal, match="output 'x' is FP64, declared as FP32"):
            encoder.encode(Response(outputs={"x": np.zeros(1)}))
        with pytest.raises(Internal, match="'y', not declared"):
            encoder.encode(Response(outputs={"y": np.zeros(1, np.float32)}))


def test_parameters_of_a_response_are_its_own():
    encoder = ResponseEncoder(OFFER, asking_for())
    for parameters in ({}, {"n": 1}, {}, {"n": 2}):
        response = Response(outputs={"x": np.zeros(1)}, parameters=parameters)
        message = pb.ModelInferResponse.FromString(b"".join(encoder.encode(response)))
        assert {key: p.int64_param for key, p in message.parameters.items()} == parameters


def test_forms_without_end_are_not_kept_without_end():
    encoder = ResponseEncoder(OFFER, asking_for())
    for size in range(200):
        outputs = {"x": np.zeros(size, np.uint8)}
        assert encoded(encoder, **outputs) == expected(["x"], outputs, "")
    assert len(encoder._templates) <= 16
