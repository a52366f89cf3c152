"""Requests of OpenAI's API, as backends get them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from anyserve_protos.infer_wire import InferRequestHead, join_request, scan_request

from anyserve.http.openai.models import Target
from anyserve.http.openai.requests import of_chat, of_completion, of_embedding
from anyserve.http.openai.schemas import ChatRequest, CompletionRequest, decode

TARGETS = [
    Target("decode", "decode"),
    Target("m", "decode", (("model", "m"), ("max_context", 2**40), ("fast", True), ("min_x", 0.5))),
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
FIELDS = [
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"prompt_cache_key": "ключ", "tools": [{"type": "function", "function": {"name": "f"}}]},
]


def as_read(request: InferRequestHead) -> InferRequestHead:
    return scan_request(join_request(request.head, request.raw))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("identity", ["", "mine"])
def test_a_request_is_what_would_be_read_of_its_bytes(
    target: Target, fields: dict[str, Any], identity: str
) -> None:
    chat = decode(ChatRequest, msgspec.json.encode({**CHAT, **fields}))
    text = decode(CompletionRequest, msgspec.json.encode({"model": "m", "prompt": "a", **fields}))
    for request in (
        of_chat(target, chat, identity),
        of_completion(target, text, "a", identity),
        of_embedding(target, ["a", "b"], identity),
    ):
        assert as_read(request) == request
        assert request.id == identity
        assert request.model_name == "decode"
