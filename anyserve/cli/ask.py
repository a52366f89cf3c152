"""`anyserve infer` and `anyserve chat`: ask a replica from the terminal."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import numpy as np
import trio

from anyserve.capability import Attribute
from anyserve.client import Client, Result, open_client
from anyserve.errors import AnyServeError, InvalidArgument
from anyserve.messages import OutputValue
from anyserve.tensors import numpy_dtype

_SHOWN = 8
"""Elements of a numeric output that are printed."""


def add_commands(commands: Any) -> None:
    """Add `infer` and `chat` to the command line."""
    infer = commands.add_parser(
        "infer",
        help="send one request",
        description="Send one request and print what comes back.",
        epilog="example: anyserve infer 127.0.0.1:8001 decode text_input='Once upon a time'"
        " max_tokens=40 --stream",
    )
    infer.add_argument("address", help="where the replica serves, as 127.0.0.1:8001")
    infer.add_argument("capability")
    infer.add_argument(
        "inputs",
        nargs="*",
        metavar="NAME=VALUE",
        help="an input: text for BYTES, else a number or JSON list; repeated for several texts",
    )
    infer.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="a request parameter"
    )
    infer.add_argument("--stream", action="store_true", help="print responses as they come")
    infer.add_argument("--timeout", type=float, default=120.0, help="seconds to wait (120)")
    infer.set_defaults(run=lambda options: _run(_infer, options))

    chat = commands.add_parser(
        "chat",
        help="chat with a replica's decode capability",
        description="Chat in the terminal. Ctrl-C stops an answer, Ctrl-D ends the chat.",
    )
    chat.add_argument("address", help="where the replica serves, as 127.0.0.1:8001")
    chat.add_argument("--capability", default="decode")
    chat.add_argument("--system", help="a system prompt of your own")
    chat.add_argument("--max-tokens", type=int, default=256)
    chat.add_argument("--temperature", type=float, default=0.7)
    chat.set_defaults(run=lambda options: _run(_chat, options))


def _run(command: Any, options: argparse.Namespace) -> int:
    try:
        trio.run(command, options)
    except (AnyServeError, trio.TooSlowError) as error:
        print(f"anyserve: {str(error) or 'no answer in time'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


async def _infer(options: argparse.Namespace) -> None:
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


async def _chat(options: argparse.Namespace) -> None:
    messages: list[dict[str, str]] = []
    if options.system:
        messages.append({"role": "system", "content": options.system})
    async with open_client(options.address) as client:
        if not await client.ready():
            print("(the replica is still loading)", file=sys.stderr)
        while True:
            try:
                line = await trio.to_thread.run_sync(
                    input, "you> " if sys.stdin.isatty() else "", abandon_on_cancel=True
                )
            except EOFError:
                return
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            answer = await _answer(client, messages, options)
            messages.append({"role": "assistant", "content": answer})


async def _answer(
    client: Client, messages: list[dict[str, str]], options: argparse.Namespace
) -> str:
    """Print an answer as it comes; Ctrl-C cancels it down to the engine."""
    pieces: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_interrupt, nursery.cancel_scope)
        responses = client.generate(
            options.capability,
            {"messages": json.dumps(messages)},
            {
                "stream": True,
                "max_tokens": options.max_tokens,
                "temperature": options.temperature,
            },
        )
        async with aclosing(responses):
            async for response in responses:
                text = b"".join(response["text_output"]).decode()
                print(text, end="", flush=True)
                pieces.append(text)
        nursery.cancel_scope.cancel()
    print()
    return "".join(pieces)


async def _stop_on_interrupt(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
