"""Bodies that nobody would send: each is answered, none by a fault of ours."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CHAT: dict[str, Any] = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a b c"}]},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "stop": ["x", "y"],
    "seed": 7,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "auto",
    "user": "somebody",
}
COMPLETION: dict[str, Any] = {
    "model": "decode",
    "prompt": ["a b", "c"],
    "stream": False,
    "max_tokens": 3,
    "logprobs": 1,
    "echo": False,
    "n": 1,
}
EMBEDDING: dict[str, Any] = {
    "model": "embedding",
    "input": ["a", "b"],
    "encoding_format": "base64",
    "dimensions": 2,
}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
}

strange = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["stream", "auto", "json_schema", "scripted", "\ud800", "\0", "-1"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be put in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(BODIES)))
    body: Any = BODIES[path]
    for _ in range(draw(st.integers(1, 3))):
        body = put(body, draw(st.sampled_from(list(places(body)))), draw(strange))
    data = json.dumps(body).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    return path, data


@pytest.fixture(scope="module")
def connection(scripted_replica: Any) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(scripted_replica.http, timeout=20)
    yield connection
    connection.close()


@settings(max_examples=300)
@given(request=mutated())
def test_whatever_is_asked_is_answered_and_nothing_breaks(
    connection: http.client.HTTPConnection, request: tuple[str, bytes]
) -> None:
    path, data = request
    connection.request("POST", path, data)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status < 500, body
    if answer.status != 200:
        error = json.loads(body)["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}
    elif answer.getheader("content-type") == "text/event-stream":
        assert body.endswith(b"data: [DONE]\n\n"), body
