"""Triton's generate extension: flat JSON ⇄ requests and responses, by what the model declares.

A key that names an input becomes that input; other keys, and those of `parameters`, are request
parameters. Where a model declares no inputs, every key outside `parameters` is one. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from anyserve_protos import codec
from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import InvalidArgument
from anyserve.http.kserve.inference import encode_parameters, read_json, said_of, taken_apart
from anyserve.http.kserve.tensors import from_raw, to_raw

_decoder = msgspec.json.Decoder(dict[str, Any])
_GUESSED: dict[type, str] = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP32"}


def read_generate(body: bytes, model: pb.ModelMetadataResponse, version: str) -> InferRequestHead:
    """A ModelInferRequest; raises `InvalidArgument`."""
    asked: dict[str, Any] = read_json(_decoder, body)
    identity = asked.pop("id", "")
    values = asked.pop("parameters", {})
    if not isinstance(identity, str) or not isinstance(values, dict):
        raise InvalidArgument("'id' is text, and 'parameters' an object")
    message = pb.ModelInferRequest(model_name=model.name, model_version=version, id=identity)
    declared = {tensor.name: tensor for tensor in model.inputs}
    raw = []
    for name, value in asked.items():
        if declared and name not in declared:
            values[name] = value
            continue
        tensor = declared.get(name)
        data = value if isinstance(value, list) else [value]
        datatype = _guess(name, data) if tensor is None else tensor.datatype
        shape = [len(data)] if tensor is None else _shape(tensor.shape, len(data))
        raw.append(to_raw(f"input {name[:100]!r}", datatype, shape, data))
        message.inputs.append(
            pb.ModelInferRequestInferInputTensor(name=name, datatype=datatype, shape=shape)
        )
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            raise InvalidArgument(f"parameter {name[:100]!r} is no text, number or bool")
    message.parameters = encode_parameters(values)
    return taken_apart(message, raw)


def write_generated(message: bytes) -> bytes:
    """A response as one JSON object; an output of one element is that element."""
    response = codec.decode(pb.ModelInferResponse, message)
    answer = said_of(response)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = from_raw(output.datatype, raw)
        answer[output.name] = values[0] if len(values) == 1 else values
    return msgspec.json.encode(answer)


def _guess(name: str, data: Sequence[Any]) -> str:
    kinds = {type(value) for value in data}
    kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
    if kind not in _GUESSED:
        raise InvalidArgument(
            f"input {name[:100]!r} is neither text nor numbers, nor a list of one"
        )
    return _GUESSED[kind]


def _shape(declared: Sequence[int], count: int) -> list[int]:
    """The shape of so many elements: the last free dimension takes what the others leave."""
    fixed = math.prod(size for size in declared if size >= 0)
    shape = [1 if size < 0 else size for size in declared]
    free = [index for index, size in enumerate(declared) if size < 0]
    if free and fixed:
        shape[free[-1]] = count // fixed
    return shape
