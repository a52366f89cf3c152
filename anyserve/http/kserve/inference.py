"""Inference requests and responses of KServe's REST protocol ⇄ the messages of gRPC's. Pure.

In Triton's binary form the JSON is followed by the raw contents of tensors, each as long as its
`binary_data_size` says, and a header says how long the JSON is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import attrs
import msgspec
from anyserve_protos import codec
from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import InferRequestHead, scan_request

from anyserve import parameters
from anyserve.capability import Attribute
from anyserve.errors import InvalidArgument
from anyserve.http.exchange import JSON
from anyserve.http.heads import Fields
from anyserve.http.kserve.tensors import from_raw, to_raw
from anyserve.http.request import HttpRequest
from anyserve.region_parameters import REGION

JSON_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
_LONGEST_JSON = 8 << 20
"""Bytes. JSON becomes Python objects, while nothing else runs."""
_LARGEST = 2**63 - 1
_SIZE = "binary_data_size"
_WANTED = "binary_data"
_WANTED_OF_ALL = "binary_data_output"

Parameters: TypeAlias = dict[str, bool | int | float | str]


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]]
    parameters: Parameters = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct):
    inputs: list[_Input] = []
    outputs: list[_Output] = []
    id: str = ""
    parameters: Parameters = {}


_decoder = msgspec.json.Decoder(_Request)


@attrs.frozen
class Form:
    """How outputs are wanted."""

    binary: bool = False
    """Of those that are not named."""
    named: Mapping[str, bool] = attrs.field(factory=dict)

    def is_binary(self, output: str) -> bool:
        """Whether an output is wanted as raw bytes."""
        return self.named.get(output, self.binary)


def read_json(decoder: msgspec.json.Decoder[Any], data: bytes | memoryview) -> Any:
    """Parse a body; raises `InvalidArgument` with the place where it is wrong."""
    if len(data) > _LONGEST_JSON:
        raise InvalidArgument(
            f"{len(data)} bytes of JSON, over {_LONGEST_JSON}: send large tensors as binary data"
        )
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the body is not as it should be: {error}") from None
    except RecursionError:
        raise InvalidArgument("the body is nested too deeply") from None


def encode_parameters(values: Mapping[str, Attribute]) -> dict[str, pb.InferParameter]:
    """As messages have them; raises `InvalidArgument`."""
    try:
        return parameters.encode_all(values)
    except ValueError as error:
        raise InvalidArgument(f"a parameter is {error}") from None


def read_request(request: HttpRequest, model: str, version: str) -> tuple[InferRequestHead, Form]:
    """A ModelInferRequest, and the form that its answer is wanted in; raises `InvalidArgument`."""
    body = memoryview(request.body)
    size = _json_size(request, len(body))
    asked: _Request = read_json(_decoder, body[:size])
    binary = body[size:]
    form = Form(
        asked.parameters.pop(_WANTED_OF_ALL, False) is True,
        {each.name: each.parameters.pop(_WANTED, False) is True for each in asked.outputs},
    )
    message = pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=asked.id,
        parameters=encode_parameters(asked.parameters),
    )
    raw: list[bytes | memoryview] = []
    for tensor in asked.inputs:
        what = f"input {tensor.name[:100]!r}"
        length = tensor.parameters.pop(_SIZE, None)
        if length is not None:
            if type(length) is not int or not 0 <= length <= len(binary) or tensor.data is not None:
                raise InvalidArgument(
                    f"{what}: {_SIZE} is {length!r}, with {len(binary)} bytes left"
                )
            raw.append(binary[:length])
            binary = binary[length:]
        elif tensor.data is not None:
            raw.append(to_raw(what, tensor.datatype, tensor.shape, tensor.data))
        elif REGION not in tensor.parameters:
            raise InvalidArgument(f"{what} has no data")
        message.inputs.append(
            pb.ModelInferRequestInferInputTensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tensor.shape,
                parameters=encode_parameters(tensor.parameters),
            )
        )
    if binary:
        raise InvalidArgument(f"{len(binary)} bytes follow the tensors")
    message.outputs = [
        pb.ModelInferRequestInferRequestedOutputTensor(
            name=each.name, parameters=encode_parameters(each.parameters)
        )
        for each in asked.outputs
    ]
    return taken_apart(message, raw), form


def write_response(message: bytes, form: Form) -> tuple[bytes, str, Fields]:
    """A ModelInferResponse as an answer's body, its content type and its headers."""
    response = codec.decode(pb.ModelInferResponse, message)
    outputs, pieces = [], []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = parameters.decode_all(output.parameters)
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": output.shape,
        }
        if REGION not in values:
            if form.is_binary(output.name):
                values[_SIZE] = len(raw)
                pieces.append(raw)
            else:
                entry["data"] = from_raw(output.datatype, raw)
        if values:
            entry["parameters"] = values
        outputs.append(entry)
    text = msgspec.json.encode({**said_of(response), "outputs": outputs})
    if not pieces:
        return text, JSON, ()
    return b"".join((text, *pieces)), BINARY, ((JSON_LENGTH, str(len(text))),)


def said_of(response: pb.ModelInferResponse) -> dict[str, Any]:
    """What the JSON of a response says beside its outputs."""
    said: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        said["id"] = response.id
    if response.parameters:
        said["parameters"] = parameters.decode_all(response.parameters)
    return said


def _json_size(request: HttpRequest, length: int) -> int:
    """Bytes of the JSON in a body of so many."""
    given = request.headers.get(JSON_LENGTH)
    if given is None:
        return length
    if not (given.isascii() and given.isdigit() and len(given) < 12 and int(given) <= length):
        raise InvalidArgument(
            f"header {JSON_LENGTH} is {given[:20]!r}, and the body {length} bytes"
        )
    return int(given)


def taken_apart(
    message: pb.ModelInferRequest, raw: Sequence[bytes | memoryview]
) -> InferRequestHead:
    """The request as if it had come in bytes, with these raw contents; raises `InvalidArgument`."""
    try:
        head = scan_request(bytes(message))
    except (ValueError, OverflowError, UnicodeEncodeError) as error:
        raise InvalidArgument(f"the request has what no message can hold: {error}") from None
    return attrs.evolve(head, raw=[memoryview(content) for content in raw])
