"""The server to compare with: the same work on grpc.aio, in one process.

In Google's protobuf, as a real server would; with `--bytes`, nothing is parsed or serialised.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio  # type: ignore[import-untyped]

from benchmarks import google_work as work
from benchmarks import prepared
from benchmarks.notes import note
from benchmarks.pacing import next_step

_PREPARED = prepared.stream()


class _Steps:
    """The engine of `benchmarks.work_app`."""

    def __init__(self) -> None:
        self._made: asyncio.Event | None = None

    async def step(self, gap: float) -> None:
        if self._made is not None:
            await self._made.wait()
            return
        made = self._made = asyncio.Event()
        try:
            now = time.monotonic()
            await asyncio.sleep(next_step(now, gap) - now)
        finally:
            self._made = None
            made.set()


_steps = _Steps()


async def _infer(request: Any, context: Any) -> Any:
    return work.echo(request)


async def _stream_infer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async for request in requests:
        responses = _hang if request.model_name == "hang" else _stream
        async for response in responses(request):
            yield response


async def _stream(request: Any) -> AsyncIterator[Any]:
    wanted = work.wanted(request)
    for number, due in enumerate(wanted.due(time.monotonic())):
        if wanted.in_step:
            await _steps.step(wanted.gap)
        elif wanted.gap:
            await asyncio.sleep(due - time.monotonic())
        yield work.message(request, number)


async def _hang(request: Any) -> AsyncIterator[Any]:
    yield work.message(request, 0)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        note(work.path(request))
        raise


async def _return(request: bytes, context: Any) -> bytes:
    return request


async def _send_prepared(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        for message in _PREPARED:
            yield message


async def _serve(parsed: bool) -> None:
    server = grpc.aio.server(options=work.OPTIONS)
    infer, stream_infer = (_infer, _stream_infer) if parsed else (_return, _send_prepared)
    server.add_generic_rpc_handlers((work.service(infer, stream_infer, parsed=parsed),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(parsed="--bytes" not in sys.argv))
