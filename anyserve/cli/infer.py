"""`anyserve infer`: one request, from texts of the command line to printed arrays."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import numpy as np
import trio

from anyserve.capability import Attribute
from anyserve.client import Client, Result, open_client
from anyserve.errors import InvalidArgument
from anyserve.messages import OutputValue
from anyserve.tensors import numpy_dtype

_SHOWN = 8
"""Elements of a numeric output that are printed."""


async def infer(options: argparse.Namespace) -> None:
    """Send the request that the options make up; raises `AnyServeError`, `trio.TooSlowError`."""
    values = dict(_pair(text) for text in options.param)
    parameters = {name: _parameter(value) for name, value in values.items()}
    async with open_client(options.address) as client:
        with trio.fail_after(options.timeout):
            inputs = await _inputs(client, options.capability, options.inputs)
            if not options.stream:
                _print(await client.infer(options.capability, inputs, parameters))
                return
            parameters.setdefault("stream", True)
            async with aclosing(
                client.generate(options.capability, inputs, parameters)
            ) as responses:
                async for response in responses:
                    _print(response)


async def _inputs(client: Client, capability: str, texts: list[str]) -> Mapping[str, OutputValue]:
    """The inputs in the types that the capability declares."""
    metadata = await client.metadata(capability)
    declared = {tensor.name: tensor for tensor in metadata.inputs}
    given: dict[str, list[str]] = {}
    for text in texts:
        name, value = _pair(text)
        given.setdefault(name, []).append(value)
    inputs: dict[str, OutputValue] = {}
    for name, strings in given.items():
        if name not in declared and declared:
            raise InvalidArgument(f"{capability!r} takes {', '.join(declared)}, not {name!r}")
        datatype = declared[name].datatype if name in declared else "BYTES"
        if datatype == "BYTES":
            inputs[name] = list(strings)
            continue
        try:
            array = np.array(json.loads(strings[-1]), dtype=numpy_dtype(datatype))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"input {name!r}: {strings[-1]!r} is no {datatype}") from error
        inputs[name] = array.reshape(1) if array.ndim == 0 else array
    return inputs


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"{text!r} is not of the form name=value")
    return name, value


def _parameter(text: str) -> Attribute:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _print(response: Result) -> None:
    for name, value in response.outputs.items():
        print(f"{name}: {_shown(value)}", flush=True)


def _shown(value: Any) -> str:
    if value.dtype == np.object_:
        texts = [item.decode(errors="replace") for item in value.ravel()]
        return texts[0] if len(texts) == 1 else json.dumps(texts, ensure_ascii=False)
    flat = value.ravel()
    if flat.size == 1:
        return str(flat[0])
    shown = " ".join(f"{number:.6g}" for number in flat[:_SHOWN])
    more = " …" if flat.size > _SHOWN else ""
    return f"[{shown}{more}] {value.dtype} {list(value.shape)}"
