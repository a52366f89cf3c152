"""Two apps that declare the same names differently: in other versions, with one answer and many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import trio

from anyserve import App, Context, Request, Response

first = App()
second = App()

SCHEMA = {"inputs": {"x": "INT32[2]"}, "outputs": {"version": "BYTES[1]"}}


@first.capability("item", version="1", max_batch_size=4, **SCHEMA)
async def item_1(request: Request, context: Context) -> Response:
    return Response(outputs={"version": ["1"] * len(request["x"])})


@second.capability("item", version="2", max_batch_size=4, **SCHEMA)
async def item_2(request: Request, context: Context) -> Response:
    return Response(outputs={"version": ["2"] * len(request["x"])})


@second.capability("item.fine", version="3", max_batch_size=4, **SCHEMA)
async def item_3(request: Request, context: Context) -> Response:
    return Response(outputs={"version": ["3"] * len(request["x"])})


@first.capability("left", inputs={"x": "INT32[-1]"}, outputs={"y": "INT32[-1]"})
async def left(request: Request, context: Context) -> Response:
    return Response(outputs={"y": request["x"] + 1})


@second.capability("right", inputs={"x": "INT32[-1]"}, outputs={"y": "INT32[1]"})
async def right(request: Request, context: Context) -> AsyncIterator[Response]:
    """One answer for each number."""
    for number in request["x"]:
        yield Response(outputs={"y": number.reshape(1)})


@first.capability("say", concurrency=1, queue=0)
async def say_once(request: Request, context: Context) -> Response:
    """One answer; with `file`, none, and the file is there as long as it takes."""
    if "file" in request:
        path = Path(request["file"][0].decode())
        path.touch()
        try:
            await trio.sleep_forever()
        finally:
            path.unlink()
    return Response(outputs={"said": ["once"]})


@second.capability("say")
async def say_often(request: Request, context: Context) -> AsyncIterator[Response]:
    """`n` answers."""
    for number in range(int(request["n"][0])):
        yield Response(outputs={"said": [str(number)]})
