"""Outputs read by name, of responses that are alike and that are not, beside Google's protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from anyserve_protos.response_outputs import ResponseReader
from anyserve_protos.wire import WireError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

NAMES = st.sampled_from(["text_output", "token_ids", "a"])


@st.composite
def responses(draw: st.DrawFn) -> Any:
    """Responses whose outputs are raw, some with parameters that were put behind."""
    response = service_pb2.ModelInferResponse(model_name="decode", id=draw(st.sampled_from("xy")))
    for name in draw(st.lists(NAMES, unique=True, max_size=3)):
        response.outputs.add(name=name, datatype="INT32", shape=[draw(st.integers(0, 300))])
        response.raw_output_contents.append(draw(st.binary(max_size=200)))
    behind = service_pb2.ModelInferResponse()
    if draw(st.booleans()):
        behind.parameters["triton_final_response"].bool_param = draw(st.booleans())
    return response, response.SerializeToString() + behind.SerializeToString()


@given(st.lists(responses(), max_size=5))
def test_one_reader_reads_all_responses_of_a_request(given: list[tuple[Any, bytes]]) -> None:
    reader = ResponseReader()
    for response, data in given:
        names = [output.name for output in response.outputs]
        expected = dict(zip(names, response.raw_output_contents, strict=True))
        assert reader.outputs(data) == expected
        assert reader.outputs(memoryview(data)) == expected


def test_outputs_without_contents_are_refused() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="a")
    with pytest.raises(WireError, match="1 outputs, and contents of 0"):
        ResponseReader().outputs(response.SerializeToString())


@given(st.binary(max_size=40))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    reader = ResponseReader()
    try:
        first = reader.outputs(data)
    except WireError:
        return
    assert reader.outputs(data) == first
