"""The head of a response, written by hand, is what Google's protobuf reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from anyserve_protos.infer_wire import Parameter, response_pieces
from anyserve_protos.inference import (
    InferParameter,
    ModelInferResponse,
    ModelInferResponseInferOutputTensor,
)
from anyserve_protos.response_head import OutputHead, encode_response_head
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

TEXT = st.text(max_size=200)
PARAMETERS = st.dictionaries(
    TEXT,
    st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    max_size=3,
)
OUTPUTS = st.lists(
    st.builds(
        OutputHead,
        name=TEXT,
        datatype=st.sampled_from(["FP32", "BYTES"]),
        shape=st.lists(st.integers(0, (1 << 63) - 1), max_size=4),
        parameters=PARAMETERS,
    ),
    max_size=3,
)


@given(TEXT, TEXT, TEXT, PARAMETERS, OUTPUTS, st.lists(st.binary(max_size=9), max_size=2))
def test_a_head_with_raw_contents_behind_it_is_the_response_that_it_was_made_of(
    name: str,
    version: str,
    identity: str,
    parameters: Mapping[str, Parameter],
    outputs: Sequence[OutputHead],
    raw: Sequence[bytes],
) -> None:
    head = encode_response_head(name, version, identity, parameters, outputs)

    expected = service_pb2.ModelInferResponse(model_name=name, model_version=version, id=identity)
    fill(expected.parameters, parameters)
    for output in outputs:
        tensor = expected.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.shape
        )
        fill(tensor.parameters, output.parameters)
    expected.raw_output_contents.extend(raw)
    assert (
        service_pb2.ModelInferResponse.FromString(b"".join(response_pieces(head, raw))) == expected
    )


def fill(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Put `parameters` into a protobuf map, each in the member for its type."""
    for key, value in parameters.items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int) and value < 1 << 63:
            target[key].int64_param = value
        elif isinstance(value, int):
            target[key].uint64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        else:
            target[key].string_param = value


def test_the_generated_classes_write_the_same_bytes() -> None:
    head = encode_response_head(
        "echo", "1", "7", {"done": True}, [OutputHead("OUTPUT0", "FP32", (1, 300))]
    )

    tensor = ModelInferResponseInferOutputTensor(name="OUTPUT0", datatype="FP32", shape=[1, 300])
    assert head == bytes(
        ModelInferResponse(
            model_name="echo",
            model_version="1",
            id="7",
            parameters={"done": InferParameter(bool_param=True)},
            outputs=[tensor],
        )
    )


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, "\ud800"])
def test_a_parameter_that_no_message_can_hold_is_refused(value: Parameter) -> None:
    with pytest.raises(ValueError):
        encode_response_head("echo", "1", "", {"odd": value}, [])
