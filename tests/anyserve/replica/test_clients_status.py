"""Status codes as KServe's and Triton's clients expect them, asked with raw grpcio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

Mutation = Callable[[Any], object]
Tensor = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor
CODE = grpc.StatusCode

TWO_FLOATS = np.array([[1, 2]], np.float32).tobytes()


def valid_request() -> Any:
    """What `add` accepts."""
    return pb.ModelInferRequest(
        model_name="add",
        id="valid",
        inputs=[Tensor(name=name, datatype="FP32", shape=[1, 2]) for name in ("A", "B")],
        raw_input_contents=[TWO_FLOATS, TWO_FLOATS],
    )


def echo_request(datatype: str, shape: list[int], content: bytes) -> Any:
    return pb.ModelInferRequest(
        model_name="echo",
        inputs=[Tensor(name="INPUT", datatype=datatype, shape=shape)],
        raw_input_contents=[content],
    )


def put_typed(request: Any) -> Any:
    """The inputs, whose contents are typed now."""
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.fp32_contents.extend([1, 2])
    return request.inputs


def put_wrong_field(request: Any) -> None:
    put_typed(request)
    request.inputs[1].contents.Clear()
    request.inputs[1].contents.int_contents.extend([1, 2])


# 1. Models and versions.


def test_an_unknown_model_is_not_found_and_the_error_names_what_there_is(raw: Any) -> None:
    request = valid_request()
    request.model_name = "nothing"
    for method, asked in (
        ("ModelInfer", request),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nothing")),
        ("ModelConfig", pb.ModelConfigRequest(name="nothing")),
    ):
        refusal = raw.refusal(method, asked)
        assert refusal.code is CODE.NOT_FOUND
        assert "'nothing'" in refusal.message
        assert "echo" in refusal.message


def test_an_unknown_model_is_not_ready_which_is_no_error(raw: Any) -> None:
    assert raw.call("ModelReady", pb.ModelReadyRequest(name="nothing")).ready is False
    assert raw.call("ModelReady", pb.ModelReadyRequest(name="add", version="3")).ready is True
    assert raw.call("ModelReady", pb.ModelReadyRequest(name="add", version="2")).ready is False


@pytest.mark.parametrize(
    "method, field",
    [
        ("ModelReady", "version"),
        ("ModelMetadata", "version"),
        ("ModelConfig", "version"),
        ("ModelStatistics", "version"),
        ("ModelInfer", "model_version"),
    ],
)
@pytest.mark.parametrize("version", ["latest", "-1", "1.0", "١", "1" * 20])
def test_a_version_that_is_no_number_is_invalid(
    raw: Any, method: str, field: str, version: str
) -> None:
    request_type = getattr(pb, f"{method}Request")
    name = "model_name" if method == "ModelInfer" else "name"
    refusal = raw.refusal(method, request_type(**{name: "add", field: version}))
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert "is not a number" in refusal.message


def test_a_version_that_is_not_there_is_not_found(raw: Any) -> None:
    request = valid_request()
    request.model_version = "7"
    refusal = raw.refusal("ModelInfer", request)
    assert refusal.code is CODE.NOT_FOUND
    assert "add has version=3, not 7" in refusal.message
    request.model_version = "3"
    assert raw.call("ModelInfer", request).model_version == "3"
    asked = pb.ModelMetadataRequest(name="add", version="7")
    assert raw.refusal("ModelMetadata", asked).code is CODE.NOT_FOUND


# 2. Statistics, and unary calls of what answers more than once.


def test_statistics_of_an_unknown_model_are_an_invalid_request(raw: Any) -> None:
    for asked in (
        pb.ModelStatisticsRequest(name="nothing"),
        pb.ModelStatisticsRequest(name="add", version="7"),
    ):
        assert raw.refusal("ModelStatistics", asked).code is CODE.INVALID_ARGUMENT


@pytest.mark.parametrize("values", [[], [1, 2], [1]])
def test_a_unary_call_of_a_decoupled_model_wants_exactly_one_response(
    raw: Any, values: list[int]
) -> None:
    request = pb.ModelInferRequest(
        model_name="repeat",
        id="once",
        inputs=[Tensor(name="IN", datatype="INT32", shape=[len(values)])],
        raw_input_contents=[np.array(values, np.int32).tobytes()],
    )
    if len(values) == 1:
        answer = raw.call("ModelInfer", request)
        assert answer.id == "once"
        assert answer.raw_output_contents == [np.array(values, np.int32).tobytes()]
    else:
        refusal = raw.refusal("ModelInfer", request)
        assert refusal.code is CODE.UNIMPLEMENTED
        assert "ModelStreamInfer" in refusal.message


# 6. Everything that can be wrong with a request.

MISTAKES: dict[str, tuple[Mutation, str]] = {
    "missing input": (lambda r: (r.inputs.pop(), r.raw_input_contents.pop()), "'B'"),
    "extra input": (
        lambda r: (
            r.inputs.add(name="C", datatype="FP32", shape=[1, 2]),
            r.raw_input_contents.append(TWO_FLOATS),
        ),
        "'C'",
    ),
    "duplicate input": (lambda r: setattr(r.inputs[1], "name", "A"), "'A'"),
    "input without a name": (lambda r: setattr(r.inputs[1], "name", ""), "no name"),
    "wrong datatype": (lambda r: setattr(r.inputs[1], "datatype", "INT32"), "'B'"),
    "unknown datatype": (lambda r: setattr(r.inputs[1], "datatype", "FP8"), "'B'"),
    "wrong rank": (lambda r: r.inputs[1].shape.pop(), "'B'"),
    "wrong dimension": (
        lambda r: (r.inputs[1].ClearField("shape"), r.inputs[1].shape.extend([2, 1])),
        "'B'",
    ),
    "too few bytes": (lambda r: r.raw_input_contents.__setitem__(1, TWO_FLOATS[:-1]), "'B'"),
    "too many bytes": (lambda r: r.raw_input_contents.__setitem__(1, TWO_FLOATS * 2), "'B'"),
    "no bytes": (lambda r: r.raw_input_contents.__setitem__(1, b""), "'B'"),
    "too few raw contents": (lambda r: r.raw_input_contents.pop(), "raw_input_contents"),
    "surplus raw contents": (
        lambda r: r.raw_input_contents.append(TWO_FLOATS),
        "raw_input_contents",
    ),
    "raw and typed contents": (lambda r: r.inputs[1].contents.fp32_contents.append(1), "'B'"),
    "no contents": (lambda r: r.ClearField("raw_input_contents"), "'A'"),
    "contents in another field": (put_wrong_field, "'B'"),
    "too few elements": (
        lambda r: put_typed(r)[1].contents.fp32_contents.pop(),
        "'B'",
    ),
    "too many elements": (
        lambda r: put_typed(r)[1].contents.fp32_contents.append(3),
        "'B'",
    ),
    "negative shape": (lambda r: r.inputs[1].shape.__setitem__(0, -1), "'B'"),
    "overflowing shape": (lambda r: r.inputs[1].shape.__setitem__(0, 2**62), "'B'"),
    "shape whose product wraps to what fits": (
        lambda r: (r.inputs[1].ClearField("shape"), r.inputs[1].shape.extend([2**32, 2**32, 2])),
        "'B'",
    ),
    "too many dimensions": (lambda r: r.inputs[1].shape.extend([1] * 100), "'B'"),
    "duplicate requested output": (
        lambda r: r.outputs.extend([Output(name="SUM"), Output(name="SUM")]),
        "'SUM'",
    ),
    "unknown requested output": (lambda r: r.outputs.add(name="PRODUCT"), "'PRODUCT'"),
    "empty model name": (lambda r: setattr(r, "model_name", ""), "empty"),
    "model name that climbs": (lambda r: setattr(r, "model_name", "../add"), "'../add'"),
    "model name that is a path": (lambda r: setattr(r, "model_name", "models/add"), "dotted"),
    "model name with NUL": (lambda r: setattr(r, "model_name", "add\0"), "dotted"),
    "negative timeout": (lambda r: setattr(r.parameters["timeout"], "int64_param", -1), "timeout"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_request_is_invalid_and_named(raw: Any, mistake: str) -> None:
    mutate, named = MISTAKES[mistake]
    request = valid_request()
    mutate(request)
    refusal = raw.refusal("ModelInfer", request)
    assert refusal.code is CODE.INVALID_ARGUMENT, refusal
    assert named in refusal.message


def test_the_request_that_the_mistakes_are_made_in_is_valid(raw: Any) -> None:
    answer = raw.call("ModelInfer", valid_request())
    assert [output.name for output in answer.outputs] == ["SUM", "DIFFERENCE"]
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 4]


@pytest.mark.parametrize(
    "shape, content",
    [
        ([1], b"\x05\x00\x00\x00four"),
        ([1], b"\xff\xff\xff\xfffour"),
        ([1], b"\x04\x00\x00"),
        ([2], b"\x01\x00\x00\x00a"),
        ([1], b"\x01\x00\x00\x00a\x01\x00\x00\x00b"),
        ([1 << 40], b"\x00\x00\x00\x00"),
        ([0], b"\x00\x00\x00\x00"),
    ],
    ids=["past end", "4 GiB", "cut prefix", "too few", "too many", "claims 2^40", "none expected"],
)
def test_broken_framing_of_bytes_is_invalid(raw: Any, shape: list[int], content: bytes) -> None:
    refusal = raw.refusal("ModelInfer", echo_request("BYTES", shape, content))
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert "'INPUT'" in refusal.message


@pytest.mark.parametrize("batch", [0, 5])
def test_a_batch_outside_of_what_is_declared_is_invalid(raw: Any, batch: int) -> None:
    request = pb.ModelInferRequest(
        model_name="batched",
        inputs=[Tensor(name="x", datatype="INT32", shape=[batch, 2])],
        raw_input_contents=[bytes(8 * batch)],
    )
    refusal = raw.refusal("ModelInfer", request)
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert "batch" in refusal.message


def test_a_bool_that_is_neither_is_invalid(raw: Any) -> None:
    refusal = raw.refusal("ModelInfer", echo_request("BOOL", [2], b"\x01\x02"))
    assert refusal.code is CODE.INVALID_ARGUMENT


# What handlers raise.


@pytest.mark.parametrize(
    "kind, code, words",
    [
        ("declared", CODE.PERMISSION_DENIED, "not for you"),
        ("grouped", CODE.FAILED_PRECONDITION, "refused inside a nursery"),
        ("unexpected", CODE.INTERNAL, "KeyError"),
        ("exit", CODE.INTERNAL, "SystemExit"),
        ("grouped exit", CODE.INTERNAL, "ExceptionGroup"),
        ("no response", CODE.INTERNAL, "NoneType"),
    ],
)
def test_what_a_handler_raises_has_its_status_and_no_traceback(
    raw: Any, kind: str, code: grpc.StatusCode, words: str
) -> None:
    content = len(kind).to_bytes(4, "little") + kind.encode()
    request = pb.ModelInferRequest(
        model_name="fail",
        inputs=[Tensor(name="kind", datatype="BYTES", shape=[1])],
        raw_input_contents=[content],
    )
    refusal = raw.refusal("ModelInfer", request)
    assert refusal.code is code
    assert words in refusal.message
    assert "Traceback" not in refusal.message


def test_a_handler_that_breaks_its_declaration_is_internal(raw: Any) -> None:
    refusal = raw.refusal("ModelInfer", pb.ModelInferRequest(model_name="liar"))
    assert refusal.code is CODE.INTERNAL
    assert "'y'" in refusal.message
