"""A small server that speaks SGLang's protocol by script: the real one can't be told to misbehave.

What the real one does is tested in tests/sglang.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.engine import SglangEngine

Serve = Callable[["Asked"], Awaitable[None]]


def piece(text: str, ids: list[int], finish: Any = None, **meta: Any) -> dict[str, Any]:
    """An event of a stream; finish: its type, or all of it."""
    if isinstance(finish, str):
        finish = {"type": finish}
    told = {"prompt_tokens": 3, "completion_tokens": len(ids), "cached_tokens": 1}
    return {"text": text, "output_ids": ids, "meta_info": told | {"finish_reason": finish} | meta}


HELLO = [
    piece("Hel", [1]),
    piece("Hello", [1, 2]),
    piece("Hello!", [1, 2, 3], {"type": "stop", "matched": 9}),
]


@attrs.define(eq=False)
class Asked:
    """One request, and the stream to answer on."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    stream: trio.SocketStream

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, value: Any = None, status: int = 200) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        await self.raw(
            f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )

    async def head(self) -> None:
        await self.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: Any) -> None:
        await self.chunk(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

    async def end(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    async def events(self, *values: Any) -> None:
        await self.head()
        for value in values:
            await self.event(value)
        await self.end()


@attrs.define(eq=False)
class Scripted:
    """The server. What it says may be changed while it runs."""

    port: int = 0
    model: dict[str, Any] = attrs.field(
        factory=lambda: {"model_path": "/models/tiny", "served_model_name": "tiny"}
    )
    options: dict[str, Any] = attrs.field(
        factory=lambda: {"max_running_requests": 4, "max_total_num_tokens": 128}
    )
    generate: Serve | None = None
    """How a text is given; by default it is Hello!"""
    abort: Serve | None = None
    ready: int = 200
    loads: Any = attrs.field(factory=lambda: [{"num_running_reqs": 3}, {"num_waiting_reqs": 2}])
    """Of its ranks."""
    asked: list[Asked] = attrs.field(factory=list)
    connections: int = 0
    aborted: set[str] = attrs.field(factory=set)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    piece = staticmethod(piece)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]

    async def until_asked(self, path: str, times: int = 1) -> None:
        while len(self.bodies(path)) < times:
            await self._changed.wait()

    async def until_aborted(self, rid: str) -> None:
        while rid not in self.aborted:
            await self._changed.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; on the port it had before, when it is run again."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        data = b""
        async with stream:
            try:
                while True:
                    while b"\r\n\r\n" not in data:
                        data += await _some(stream)
                    head, _, data = data.partition(b"\r\n\r\n")
                    line, *lines = head.decode().split("\r\n")
                    headers = dict(one.lower().split(": ", 1) for one in lines)
                    while len(data) < int(headers.get("content-length", 0)):
                        data += await _some(stream)
                    size = int(headers.get("content-length", 0))
                    body, data = data[:size], data[size:]
                    method, path, _ = line.split(" ")
                    value = json.loads(body) if body else None
                    asked = Asked(method, path, headers, value, stream)
                    self.asked.append(asked)
                    self._notify()
                    await self._route(asked)
            except (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def abort_now(self, rid: str) -> None:
        self.aborted.add(rid)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _route(self, asked: Asked) -> None:
        path = asked.path.partition("?")[0]
        if path == "/generate":
            await (self.generate(asked) if self.generate else asked.events(*HELLO))
        elif path == "/abort_request":
            if self.abort is None:
                self.abort_now(asked.body["rid"])
                await asked.answer()
            else:
                await self.abort(asked)
        elif path == "/v1/tokenize":
            special = [1] if asked.body.get("add_special_tokens", True) else []
            await asked.answer({"tokens": [*special, *range(10, 10 + len(asked.body["prompt"]))]})
        elif path == "/v1/embeddings":
            texts = asked.body["input"]
            data = [{"index": i, "embedding": [float(len(t)), 1.0]} for i, t in enumerate(texts)]
            await asked.answer({"data": data[::-1]})
        else:
            told: dict[str, Any] = {
                "/ready": None,
                "/model_info": self.model,
                "/server_info": self.options,
                "/v1/models": {"data": [{"id": "tiny", "max_model_len": 64}]},
                "/v1/loads": {"loads": self.loads},
            }
            await asked.answer(told[path], self.ready if path == "/ready" else 200)

    async def gives_up(self, asked: Asked) -> None:
        """A text that goes on until it is aborted."""
        await asked.head()
        await asked.event(piece("On", [1]))
        await self.until_aborted(asked.body["rid"])
        await asked.event(piece("On", [1], "abort"))
        await asked.end()


async def _some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(65536)
    if not data:
        raise EOFError
    return bytes(data)


@pytest.fixture
def serve(nursery: trio.Nursery) -> Callable[..., Awaitable[Scripted]]:
    """Starts one more server, with options of its own."""

    async def serve(**options: Any) -> Scripted:
        scripted = Scripted()
        scripted.options |= options
        await nursery.start(scripted.run)
        return scripted

    return serve


@pytest.fixture
async def server(nursery: trio.Nursery) -> Scripted:
    scripted = Scripted()
    await nursery.start(scripted.run)
    return scripted


Attach = Callable[..., AbstractAsyncContextManager[SglangEngine]]


@pytest.fixture
def attach(server: Scripted) -> Attach:
    """Opens an engine on the scripted server."""

    def attach(tokenizer: Path | None = None, api_key: str | None = None) -> Any:
        client = Client(parse_url(server.url), api_key)
        return SglangEngine.attached(client, tokenizer, within=5)

    return attach


@pytest.fixture
async def engine(attach: Attach) -> AsyncIterator[SglangEngine]:
    async with attach() as engine:
        yield engine
