"""Requests and responses between arrays and messages, as whoever sends requests needs them."""

from __future__ import annotations

from collections.abc import Mapping

from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import join_request
from anyserve_protos.wire import Buffer

from anyserve import parameters, tensors
from anyserve.capability import Attribute
from anyserve.messages import OutputValue, Result


def encode_request(
    capability: str,
    inputs: Mapping[str, OutputValue],
    values: Mapping[str, Attribute],
    request_id: str = "",
) -> bytes:
    """A ModelInferRequest; `inputs` are as a `Response` takes outputs, `values` its parameters."""
    return join_request(*request_parts(capability, inputs, values, request_id))


def request_parts(
    capability: str,
    inputs: Mapping[str, OutputValue],
    values: Mapping[str, Attribute],
    request_id: str = "",
    *,
    version: str = "",
) -> tuple[bytes, list[Buffer]]:
    """The same without its raw contents, and those, as they lie in the inputs where they can."""
    request = pb.ModelInferRequest(model_name=capability, model_version=version, id=request_id)
    request.parameters = parameters.encode_all(values)
    raw: list[Buffer] = []
    for name, value in inputs.items():
        datatype, shape, buffer = tensors.encode_raw(tensors.as_array(value))
        request.inputs.append(
            pb.ModelInferRequestInferInputTensor(name=name, datatype=datatype, shape=list(shape))
        )
        raw.append(buffer)
    return bytes(request), raw


def decode_response(response: pb.ModelInferResponse) -> Result:
    """The outputs of a response as numpy arrays, and its parameters."""
    outputs = {
        output.name: tensors.decode_raw(
            f"output {output.name!r}", output.datatype, output.shape, raw
        )
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return Result(response.id, outputs, parameters.decode_all(response.parameters))
