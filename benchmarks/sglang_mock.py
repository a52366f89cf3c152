"""SGLang's native API with no model behind it: it says the chats of `benchmarks.chats`.

As SGLang 0.5 with `--incremental-streaming-output` writes them, as far as an engine reads it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

import trio

from anyserve.http.access import Access
from anyserve.http.exchange import Exchange
from anyserve.http.routes import Routes
from benchmarks import chats, http_server
from benchmarks.chat_worker import answering

_PROMPT_TOKENS = 16
_CONTEXT = 1 << 20


def _generate(exchange: Exchange) -> Awaitable[None]:
    asked = json.loads(exchange.request.body)
    tokens = asked["sampling_params"]["max_new_tokens"]
    in_step = chats.IN_STEP in asked["text"]
    exchange.start(200, "text/event-stream")
    return _speak(exchange, asked["rid"], tokens, in_step)


async def _speak(exchange: Exchange, rid: str, tokens: int, in_step: bool) -> None:
    for number, due in enumerate(chats.due(tokens, trio.current_time(), in_step=in_step)):
        if due > trio.current_time():
            await trio.sleep_until(due)
        reason = {"type": "length", "length": tokens} if number == tokens - 1 else None
        meta = {
            "id": rid,
            "finish_reason": reason,
            "prompt_tokens": _PROMPT_TOKENS,
            "weight_version": "default",
            "total_retractions": 0,
            "completion_tokens": number + 1,
            "cached_tokens": 0,
        }
        event = {"text": chats.token(number), "output_ids": [number], "meta_info": meta}
        exchange.send(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
    exchange.send(b"data: [DONE]\n\n")
    exchange.end()


def main() -> None:
    """Serve on a free port."""
    answers: dict[str, Any] = {
        "/ready": {},
        "/model_info": {"model_path": chats.MODEL, "is_generation": True},
        "/server_info": {"max_running_requests": 256, "incremental_streaming_output": True},
        "/v1/models": {"data": [{"id": chats.MODEL, "max_model_len": _CONTEXT}]},
        "/v1/loads": {"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]},
    }
    routes = Routes(Access())
    for path, answer in answers.items():
        routes.add("GET", path, answering(answer))
    routes.add("POST", "/v1/tokenize", answering({"tokens": [1]}))
    routes.add("POST", "/generate", _generate)
    trio.run(http_server.serve, routes)


if __name__ == "__main__":
    main()
