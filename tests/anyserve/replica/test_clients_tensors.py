"""Tensors through a live replica: every datatype, both representations, edge cases, 32 MB."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.utils import np_to_triton_dtype

pb: Any = service_pb2
Tensor = pb.ModelInferRequest.InferInputTensor
BYTES_ELEMENTS = [b"", b"\0", b"a\0b", "größe".encode(), b"x" * 70_000, b"\xff\xfe"]

NUMBERS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([True, False, True]),
    "INT8": np.array([-128, 0, 127], np.int8),
    "INT16": np.array([-(2**15), 0, 2**15 - 1], np.int16),
    "INT32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 0, 2**63 - 1], np.int64),
    "UINT8": np.array([0, 1, 255], np.uint8),
    "UINT16": np.array([0, 1, 2**16 - 1], np.uint16),
    "UINT32": np.array([0, 1, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 1, 2**64 - 1], np.uint64),
    "FP16": np.array([1.5, -0.0, np.inf], np.float16),
    "BF16": np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16),
    "FP32": np.array([1.5, np.nan, -np.inf], np.float32),
    "FP64": np.array([1.5, np.nan, 1e300], np.float64),
}
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP16": "fp32_contents",
    "BF16": "fp32_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def frame(elements: list[bytes]) -> bytes:
    """BYTES as they are in raw contents."""
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def echo(raw: Any, datatype: str, shape: list[int], *, content: bytes | None, **typed: Any) -> Any:
    """The answer of `echo` to one input, raw or typed."""
    request = pb.ModelInferRequest(
        model_name="echo",
        inputs=[Tensor(name="INPUT", datatype=datatype, shape=shape, contents=typed or None)],
        raw_input_contents=[] if content is None else [content],
    )
    answer = raw.call("ModelInfer", request)
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("OUTPUT", datatype, shape)
    assert not output.HasField("contents")
    return answer


# 9. Both representations of all datatypes; answers are raw.


@pytest.mark.parametrize("datatype", NUMBERS)
def test_raw_contents_of_every_datatype_come_back_bit_for_bit(raw: Any, datatype: str) -> None:
    content = NUMBERS[datatype].tobytes()
    answer = echo(raw, datatype, [3], content=content)
    assert answer.raw_output_contents == [content]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_typed_contents_of_every_datatype_are_answered_raw(raw: Any, datatype: str) -> None:
    array = NUMBERS[datatype]
    values = array.astype(np.float32) if datatype in ("FP16", "BF16") else array
    typed = {TYPED_FIELDS[datatype]: values.tolist()}
    answer = echo(raw, datatype, [3], content=None, **typed)
    assert answer.raw_output_contents == [array.tobytes()]


@pytest.mark.parametrize("datatype, bits", [("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_floats_in_typed_form_are_rounded_to_nearest(
    raw: Any, datatype: str, bits: Any
) -> None:
    values = np.array([0.1, 3.14159, -2.7182817, 1e-5], np.float32)
    answer = echo(raw, datatype, [4], content=None, fp32_contents=values.tolist())
    assert answer.raw_output_contents == [values.astype(bits).tobytes()]


@pytest.mark.parametrize("typed", [False, True])
def test_bytes_may_be_empty_hold_nul_and_be_long(raw: Any, typed: bool) -> None:
    content = frame(BYTES_ELEMENTS)
    shape = [2, 3]
    if typed:
        answer = echo(raw, "BYTES", shape, content=None, bytes_contents=BYTES_ELEMENTS)
    else:
        answer = echo(raw, "BYTES", shape, content=content)
    assert answer.raw_output_contents == [content]


@pytest.mark.parametrize("datatype", [*NUMBERS, "BYTES"])
@pytest.mark.parametrize("shape", [[0], [2, 0, 3]])
@pytest.mark.parametrize("content", [b"", None], ids=["raw", "typed"])
def test_a_tensor_may_have_no_elements(
    raw: Any, datatype: str, shape: list[int], content: bytes | None
) -> None:
    assert echo(raw, datatype, shape, content=content).raw_output_contents == [b""]


def test_a_scalar_has_an_empty_shape(raw: Any) -> None:
    answer = echo(raw, "INT64", [], content=(42).to_bytes(8, "little"))
    assert answer.raw_output_contents == [(42).to_bytes(8, "little")]


def test_the_id_is_echoed_and_the_version_is_1_unless_declared(raw: Any) -> None:
    for identity in ("", "an id", "ü" * 500):
        answer = raw.call("ModelInfer", pb.ModelInferRequest(model_name="echo", id=identity))
        assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", identity)
    assert raw.call("ModelMetadata", pb.ModelMetadataRequest(name="add")).versions == ["3"]


# The same as tritonclient has them in its own classes.


@pytest.mark.parametrize("datatype", [name for name in NUMBERS if name != "BF16"])
def test_tritonclient_reads_back_what_it_sent(triton: Any, datatype: str) -> None:
    array = NUMBERS[datatype].reshape(1, 3)
    tensor = InferInput("INPUT", [1, 3], np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    result = triton.infer("echo", [tensor], request_id="r1", client_timeout=20)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT"), array)
    assert result.get_response().id == "r1"


def test_tritonclient_sends_and_reads_strings_and_bf16(triton: Any) -> None:
    words = np.array([[b"one", b"", b"drei"]], np.object_)
    halves = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    inputs = [InferInput("INPUT0", [1, 3], "BYTES"), InferInput("INPUT1", [2], "BF16")]
    inputs[0].set_data_from_numpy(words)
    inputs[1].set_data_from_numpy(halves)
    result = triton.infer("echo", inputs, client_timeout=20)
    assert result.as_numpy("OUTPUT0").tolist() == words.tolist()
    assert result.as_numpy("OUTPUT1").tolist() == halves.tolist()


def test_only_the_outputs_asked_for_come_in_the_order_asked(triton: Any) -> None:
    inputs = []
    for name, value in (("A", 5.0), ("B", 3.0)):
        tensor = InferInput(name, [1, 2], "FP32")
        tensor.set_data_from_numpy(np.full((1, 2), value, np.float32))
        inputs.append(tensor)
    outputs = [InferRequestedOutput("DIFFERENCE"), InferRequestedOutput("SUM")]
    answer = triton.infer("add", inputs, outputs=outputs, client_timeout=20).get_response()
    assert [output.name for output in answer.outputs] == ["DIFFERENCE", "SUM"]
    result = triton.infer("add", inputs, outputs=outputs[:1], client_timeout=20)
    assert [output.name for output in result.get_response().outputs] == ["DIFFERENCE"]
    assert result.as_numpy("DIFFERENCE").tolist() == [[2, 2]]


# 13. Large messages.


def test_a_message_of_32_mb_goes_both_ways(triton: Any) -> None:
    array = np.arange(8_000_000, dtype=np.float32)
    tensor = InferInput("INPUT", [8_000_000], "FP32")
    tensor.set_data_from_numpy(array)
    result = triton.infer("echo", [tensor], client_timeout=60)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT"), array)


def test_many_tensors_of_all_sizes_keep_their_order(raw: Any) -> None:
    contents = [bytes([number]) * (number * 3001) for number in range(60)]
    request = pb.ModelInferRequest(
        model_name="echo",
        inputs=[
            Tensor(name=f"INPUT{number}", datatype="UINT8", shape=[len(content)])
            for number, content in enumerate(contents)
        ],
        raw_input_contents=contents,
    )
    answer = raw.call("ModelInfer", request)
    assert list(answer.raw_output_contents) == contents
    assert [output.name for output in answer.outputs] == [f"OUTPUT{n}" for n in range(60)]


# max_batch_size.


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_up_to_the_maximum_is_served(raw: Any, batch: int) -> None:
    array = np.arange(batch * 2, dtype=np.int32).reshape(batch, 2)
    request = pb.ModelInferRequest(
        model_name="batched",
        inputs=[Tensor(name="x", datatype="INT32", shape=array.shape)],
        raw_input_contents=[array.tobytes()],
    )
    answer = raw.call("ModelInfer", request)
    assert list(answer.outputs[0].shape) == [batch, 2]
    assert answer.raw_output_contents == [(array * 2).tobytes()]
