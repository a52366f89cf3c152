"""An OpenAI server with no model behind it, for the gateways that need one.

It says the chats of `benchmarks.chats`, on AnyServe's HTTP server and without its doors: what it
answers is written before it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from functools import cache
from typing import Any

import trio

from anyserve.http.access import Access
from anyserve.http.exchange import Exchange
from anyserve.http.routes import Handler, Routes
from benchmarks import chats, http_server

_KNOWN = {"id": "chatcmpl-0123456789abcdef", "created": 1_790_000_000, "model": chats.MODEL}
_USAGE = {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24}
_ABOUT = {
    "model_path": chats.MODEL,
    "served_model_name": chats.MODEL,
    "is_generation": True,
    "version": "0.5.0",
}


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    event = {**_KNOWN, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


@cache
def _events(number: int) -> bytes:
    """What brings a token."""
    first = {"role": "assistant"} if number == 0 else {}
    return _event({**first, "content": chats.token(number)})


_END = _event({}, "length") + b"data: [DONE]\n\n"


@cache
def _whole(tokens: int) -> bytes:
    message = {"role": "assistant", "content": chats.text(tokens)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    answer = {**_KNOWN, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(answer, separators=(",", ":")).encode()


def _chat(exchange: Exchange) -> Awaitable[None] | None:
    asked = json.loads(exchange.request.body)
    # SGLang's router sends the one for the other.
    tokens = asked.get("max_tokens") or asked["max_completion_tokens"]
    if not asked.get("stream"):
        exchange.respond(200, _whole(tokens))
        return None
    exchange.start(200, "text/event-stream")
    if tokens != chats.SHORT:
        return _speak(exchange, tokens)
    exchange.send(b"".join(map(_events, range(tokens))) + _END)
    exchange.end()
    return None


async def _speak(exchange: Exchange, tokens: int) -> None:
    for number, due in enumerate(chats.due(tokens, trio.current_time())):
        if due > trio.current_time():
            await trio.sleep_until(due)
        exchange.send(_events(number))
    exchange.send(_END)
    exchange.end()


def answering(answer: Any) -> Handler:
    """A handler that answers with that JSON."""
    body = json.dumps(answer).encode()
    return lambda exchange: exchange.respond(200, body)


def main() -> None:
    """Serve on a free port."""
    routes = Routes(Access())
    routes.add("POST", chats.PATH, _chat)
    # What gateways want to know of a worker before they believe in it.
    for path in ("health", "server_info", "get_server_info", "model_info", "get_model_info"):
        routes.add("GET", f"/{path}", answering(_ABOUT))
    models = {"object": "list", "data": [{"id": chats.MODEL, "object": "model"}]}
    routes.add("GET", "/v1/models", answering(models))
    trio.run(http_server.serve, routes)


if __name__ == "__main__":
    main()
