"""`anyserve chat`: turns of a conversation, answers printed as they come."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import aclosing

import trio

from anyserve.client import Client, open_client


async def chat(options: argparse.Namespace) -> None:
    """Chat until the end of the input; raises `AnyServeError`."""
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
