"""KServe's request and response parameters ⇄ Python values."""

from __future__ import annotations

from collections.abc import Mapping

from anyserve_protos.inference import InferParameter

from anyserve.capability import Attribute


def encode(value: Attribute) -> InferParameter:
    """A parameter that holds `value`; raises `ValueError` for an int of more than 64 bits."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return InferParameter(int64_param=value)
        if 0 <= value < 1 << 64:
            return InferParameter(uint64_param=value)
        raise ValueError(f"{value} has more than 64 bits")
    if isinstance(value, float):
        return InferParameter(double_param=value)
    return InferParameter(string_param=str(value))


def encode_all(values: Mapping[str, Attribute]) -> dict[str, InferParameter]:
    """Parameters by name; raises as `encode`."""
    return {name: encode(value) for name, value in values.items()}


def decode_all(parameters: Mapping[str, InferParameter]) -> dict[str, Attribute]:
    """Their values by name; those that hold nothing are left out."""
    values = {name: _decode(parameter) for name, parameter in parameters.items()}
    return {name: value for name, value in values.items() if value is not None}


def _decode(parameter: InferParameter) -> Attribute | None:
    for value in (
        parameter.bool_param,
        parameter.int64_param,
        parameter.string_param,
        parameter.double_param,
        parameter.uint64_param,
    ):
        if value is not None:
            return value
    return None
