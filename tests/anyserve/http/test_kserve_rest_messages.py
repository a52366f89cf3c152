"""KServe's JSON and Triton's binary form ⇄ gRPC's messages, without a server."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from anyserve_protos import codec
from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import InferRequestHead, join_request, scan_request
from hypothesis import given
from hypothesis import strategies as st

from anyserve import tensors
from anyserve.errors import InvalidArgument
from anyserve.http.kserve.generate import read_generate, write_generated
from anyserve.http.kserve.inference import Form, read_request, write_response
from anyserve.http.kserve.tensors import from_raw, to_raw
from anyserve.http.request import HttpRequest

INTEGERS = {f"{sign}INT{bits}": (sign, bits) for sign in ("", "U") for bits in (8, 16, 32, 64)}
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    **{
        name: st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        if not sign
        else st.integers(0, (1 << bits) - 1)
        for name, (sign, bits) in INTEGERS.items()
    },
    "BOOL": st.booleans(),
    "BYTES": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "FP16": st.floats(width=16, allow_nan=False, allow_infinity=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
}


@st.composite
def data(draw: st.DrawFn) -> tuple[str, list[Any]]:
    datatype = draw(st.sampled_from(sorted(ELEMENTS)))
    return datatype, draw(st.lists(ELEMENTS[datatype], max_size=8))


@given(data())
def test_elements_come_back_from_raw_contents_and_are_numpys(given: tuple[str, list[Any]]) -> None:
    datatype, elements = given
    raw = to_raw("x", datatype, [len(elements)], elements)
    assert from_raw(datatype, raw) == elements
    array = tensors.decode_raw("x", datatype, [len(elements)], raw)
    found = [each.decode() if isinstance(each, bytes) else each for each in array.tolist()]
    assert found == elements


def test_data_may_be_nested() -> None:
    flat = to_raw("x", "INT32", [2, 1, 2], [1, 2, 3, 4])
    assert to_raw("x", "INT32", [2, 1, 2], [[[1, 2]], [[3, 4]]]) == flat


def test_bf16_is_widened() -> None:
    assert from_raw("BF16", b"\x80\x3f\x20\xc0") == [1.0, -2.5]


@pytest.mark.parametrize(
    ("datatype", "shape", "elements"),
    [
        ("INT8", [1], [128]),
        ("UINT8", [1], [-1]),
        ("INT32", [1], [1.5]),
        ("INT32", [1], ["1"]),
        ("INT32", [2], [1]),
        ("INT32", [2], [[1], 2]),
        ("INT32", [1], [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]),
        ("FP32", [1], ["x"]),
        ("FP32", [1], [None]),
        ("FP16", [1], [1e9]),
        ("BF16", [1], [1.0]),
        ("BYTES", [1], [1]),
        ("BYTES", [1], ["\udc80"]),
        ("BOOL", [1], [2]),
        ("BOOL", [1], ["true"]),
        ("COMPLEX", [1], [1]),
        ("FP32", [2**62, 4], [1.0]),
    ],
)
def test_data_that_does_not_fit_is_refused(
    datatype: str, shape: list[int], elements: list[Any]
) -> None:
    with pytest.raises(InvalidArgument, match="input 'x'"):
        to_raw("input 'x'", datatype, shape, elements)


def post(body: Any, binary: bytes = b"", **headers: str) -> HttpRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if binary:
        named.setdefault("inference-header-content-length", str(len(text)))
    return HttpRequest("POST", "/", headers=named, body=text + binary)


def read(request: HttpRequest) -> tuple[pb.ModelInferRequest, Form]:
    head, form = read_request(request, "m", "3")
    return whole(head), form


def whole(head: InferRequestHead) -> pb.ModelInferRequest:
    body = join_request(head.head, head.raw)
    assert scan_request(body) == head
    return codec.decode(pb.ModelInferRequest, body)


def test_a_request_in_json_is_one_of_grpc() -> None:
    message, form = read(
        post(
            {
                "id": "one",
                "parameters": {"a": 1, "b": True, "c": "x", "d": 0.5, "binary_data_output": True},
                "inputs": [
                    {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]},
                    {"name": "y", "datatype": "BYTES", "shape": [1], "data": ["é"]},
                    {
                        "name": "z",
                        "datatype": "INT32",
                        "shape": [2],
                        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
                    },
                ],
                "outputs": [{"name": "o", "parameters": {"binary_data": False}}, {"name": "p"}],
            }
        )
    )
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "one")
    assert message.parameters["a"].int64_param == 1
    assert message.parameters["b"].bool_param is True
    assert message.parameters["d"].double_param == 0.5
    assert "binary_data_output" not in message.parameters
    assert [each.name for each in message.inputs] == ["x", "y", "z"]
    assert message.inputs[2].parameters["shared_memory_region"].string_param == "r"
    assert message.raw_input_contents == [b"\1\0\0\0\2\0\0\0", b"\2\0\0\0\xc3\xa9"]
    assert [each.name for each in message.outputs] == ["o", "p"]
    assert not message.outputs[0].parameters
    assert (form.is_binary("o"), form.is_binary("p"), form.is_binary("q")) == (False, False, True)


def test_binary_tensors_follow_the_json_in_order() -> None:
    body = {
        "inputs": [
            {"name": "x", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "y", "datatype": "INT8", "shape": [1], "data": [7]},
            {"name": "z", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": 1}},
        ]
    }
    message, _ = read(post(body, b"abc"))
    assert message.raw_input_contents == [b"ab", b"\7", b"c"]
    assert not message.inputs[0].parameters


X = {"name": "x", "datatype": "UINT8", "shape": [2]}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (post(b"{"), "truncated"),
        (post(b"\xff"), "the body"),
        (post([]), "Expected `object`"),
        (post({"inputs": [{"name": 1}]}), r"\$\.inputs\[0\]\.name"),
        (post({"inputs": [{**X, "shape": [-1]}]}), r"\$\.inputs\[0\]\.shape"),
        (post({"inputs": [{**X, "shape": [1 << 70]}]}), r"\$\.inputs\[0\]\.shape"),
        (post({"inputs": [X]}), "input 'x' has no data"),
        (post({"id": 5}), r"\$\.id"),
        (post({"parameters": {"a": None}}), r"\$\.parameters"),
        (post({"parameters": {"a": 1 << 64}}), "more than 64 bits"),
        (post(b'{"inputs":' + b"[" * 100_000), "the body"),
        (post({"inputs": []}, b"x"), "1 bytes follow"),
        (post({}, inference_header_content_length="99"), "header"),
        (post({}, inference_header_content_length="-1"), "header"),
        (post({}, inference_header_content_length="1e1"), "header"),
        (post({"inputs": [{**X, "parameters": {"binary_data_size": 3}}]}, b"ab"), "input 'x'"),
        (post({"inputs": [{**X, "parameters": {"binary_data_size": -1}}]}, b"ab"), "input 'x'"),
        (post({"inputs": [{**X, "parameters": {"binary_data_size": True}}]}, b"ab"), "input 'x'"),
        (post({"inputs": [{**X, "parameters": {"binary_data_size": 2}, "data": [1]}]}, b"ab"), "x"),
        (post(b" " * (8 << 20) + b"{}"), "send large tensors as binary"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(request_: HttpRequest, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read_request(request_, "m", "")


@given(st.binary(max_size=80), st.integers(0, 90))
def test_garbage_is_refused_in_words(body: bytes, size: int) -> None:
    request = post(body, inference_header_content_length=str(size))
    with suppress(InvalidArgument):
        read_request(request, "m", "")


def response() -> bytes:
    return bytes(
        pb.ModelInferResponse(
            model_name="m",
            model_version="1",
            id="one",
            parameters={"p": pb.InferParameter(int64_param=2)},
            outputs=[
                pb.ModelInferResponseInferOutputTensor(name="x", datatype="INT8", shape=[1, 2]),
                pb.ModelInferResponseInferOutputTensor(name="y", datatype="BYTES", shape=[1]),
                pb.ModelInferResponseInferOutputTensor(
                    name="z",
                    datatype="INT8",
                    shape=[1],
                    parameters={"shared_memory_region": pb.InferParameter(string_param="r")},
                ),
            ],
            raw_output_contents=[b"\1\2", b"\1\0\0\0a", b""],
        )
    )


def test_a_response_is_json() -> None:
    body, content_type, fields = write_response(response(), Form())
    assert (content_type, fields) == ("application/json", ())
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "one",
        "parameters": {"p": 2},
        "outputs": [
            {"name": "x", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]},
            {"name": "y", "datatype": "BYTES", "shape": [1], "data": ["a"]},
            {
                "name": "z",
                "datatype": "INT8",
                "shape": [1],
                "parameters": {"shared_memory_region": "r"},
            },
        ],
    }


def test_a_response_has_binary_tensors_where_they_are_wanted() -> None:
    body, content_type, fields = write_response(response(), Form(binary=True, named={"x": False}))
    assert content_type == "application/octet-stream"
    ((name, size),) = fields
    assert name == "inference-header-content-length"
    assert body[int(size) :] == b"\1\0\0\0a"
    x, y, _ = json.loads(body[: int(size)])["outputs"]
    assert x["data"] == [1, 2]
    assert y["parameters"] == {"binary_data_size": 5}


# Generate.

Tensor = pb.ModelMetadataResponseTensorMetadata
MODEL = pb.ModelMetadataResponse(
    name="m",
    inputs=[
        Tensor(name="text_input", datatype="BYTES", shape=[1]),
        Tensor(name="max_tokens", datatype="INT32", shape=[-1, 1]),
        Tensor(name="grid", datatype="FP32", shape=[-1, 2]),
    ],
)


def generated(model: pb.ModelMetadataResponse, body: Any) -> pb.ModelInferRequest:
    return whole(read_generate(json.dumps(body).encode(), model, "2"))


def test_flat_json_is_a_request_by_what_the_model_declares() -> None:
    message = generated(
        MODEL,
        {
            "text_input": "hi",
            "max_tokens": 5,
            "grid": [1, 2.5, 3, 4],
            "temperature": 0.5,
            "parameters": {"stop": "x"},
            "id": "one",
        },
    )
    assert (message.model_name, message.model_version, message.id) == ("m", "2", "one")
    assert [(each.name, each.datatype, each.shape) for each in message.inputs] == [
        ("text_input", "BYTES", [1]),
        ("max_tokens", "INT32", [1, 1]),
        ("grid", "FP32", [2, 2]),
    ]
    assert message.raw_input_contents[2] == np.array([1, 2.5, 3, 4], np.float32).tobytes()
    assert message.parameters["temperature"].double_param == 0.5
    assert message.parameters["stop"].string_param == "x"


def test_a_model_that_declares_nothing_gets_what_the_values_are() -> None:
    message = generated(
        pb.ModelMetadataResponse(name="m"),
        {"a": "x", "b": True, "c": 1, "d": [1, 0.5], "parameters": {"p": 1}},
    )
    assert [(each.name, each.datatype, each.shape) for each in message.inputs] == [
        ("a", "BYTES", [1]),
        ("b", "BOOL", [1]),
        ("c", "INT64", [1]),
        ("d", "FP32", [2]),
    ]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"id": 1},
        {"parameters": []},
        {"parameters": {"a": None}},
        {"text_input": {"a": 1}},
        {"text_input": ["a", "b"]},
        {"max_tokens": "many"},
        {"grid": [1, 2, 3]},
        {"unknown": {}},
    ],
)
def test_flat_json_that_does_not_fit_is_refused(body: Any) -> None:
    with pytest.raises(InvalidArgument):
        generated(MODEL, body)


def test_a_response_in_flat_json_has_elements_where_there_is_one() -> None:
    assert json.loads(write_generated(response())) == {
        "model_name": "m",
        "model_version": "1",
        "id": "one",
        "parameters": {"p": 2},
        "x": [1, 2],
        "y": "a",
        "z": [],
    }
