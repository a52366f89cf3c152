"""KServe's request and response parameters ⇄ Python values."""

from __future__ import annotations

from anyserve_protos.inference import InferParameter

from anyserve.capability import Attribute


def encode(value: Attribute) -> InferParameter:
    """A parameter that holds `value`."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    return InferParameter(string_param=str(value))


def decode(parameter: InferParameter) -> Attribute:
    """The value of a parameter; the empty string for one that holds nothing."""
    for value in (
        parameter.bool_param,
        parameter.int64_param,
        parameter.string_param,
        parameter.double_param,
        parameter.uint64_param,
    ):
        if value is not None:
            return value
    return ""
