"""llama.cpp's server with nothing around it but a thread for each text: what `decode` is held to.

Reads one JSON list a line (how many texts at once, then the fields of each `Order`), and prints
the fields of each `Text` as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs

from anyserve.engines.text.native import NativeServer
from anyserve.engines.text.settings import TextSettings
from benchmarks.texts import Order, Text


def _generate(native: NativeServer, order: Order) -> Text:
    time.sleep(order.pause)
    body = {
        "prompt": order.prompt,
        "max_tokens": order.max_tokens,
        "temperature": 0,
        "stream": True,
    }
    began = time.monotonic()
    first: float | None = None
    last = b""

    def on_chunk(chunk: bytes) -> bool:
        nonlocal first, last
        if first is None:
            first = time.monotonic()
        last = chunk
        return False

    native.run(json.dumps(body).encode(), on_chunk)
    assert first is not None
    return Text(first - began, _count(json.loads(last)))


def _count(chunk: Any) -> int:
    """The tokens of the text that ends with this chunk."""
    return int(chunk["timings"]["predicted_n"])


def main() -> None:
    """Serve until the end of the input."""
    native = NativeServer.load(TextSettings())
    print("ready", flush=True)
    for line in sys.stdin:
        in_flight, *orders = json.loads(line)
        with ThreadPoolExecutor(in_flight) as threads:
            texts = threads.map(partial(_generate, native), [Order(*order) for order in orders])
            print(json.dumps([attrs.astuple(text) for text in texts]), flush=True)
    native.close()


if __name__ == "__main__":
    main()
