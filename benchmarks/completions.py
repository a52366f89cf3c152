"""Texts by OpenAI's API, streamed, from whatever server has it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.errors import CannotMeasure
from benchmarks.texts import Order, Text

_TIMEOUT = 60.0
_EVENT, _DONE = b"data: ", b"[DONE]"


def generate(address: str, model: str, orders: Sequence[Order], in_flight: int) -> list[Text]:
    """Have the texts generated, each on a connection of its own and `in_flight` at once."""
    with ThreadPoolExecutor(in_flight) as threads:
        return list(threads.map(partial(_generate, address, model), orders))


def _generate(address: str, model: str, order: Order) -> Text:
    time.sleep(order.pause)
    body = {
        "model": model,
        "prompt": order.prompt,
        "max_tokens": order.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    connection.connect()
    began = time.monotonic()
    first: float | None = None
    tokens = 0
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise CannotMeasure(f"{address} answers {answer.status}: {answer.read()!r}")
        for line in answer:
            if not line.startswith(_EVENT) or line.startswith(_EVENT + _DONE):
                continue
            event: Any = json.loads(line.removeprefix(_EVENT))
            if first is None and event["choices"][0]["text"]:
                first = time.monotonic() - began
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    finally:
        connection.close()
    if first is None or not tokens:
        raise CannotMeasure(f"{address} gives no text")
    return Text(first, tokens)
