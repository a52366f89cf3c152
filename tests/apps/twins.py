"""An app that several replicas of a fleet run, which says which of them has answered."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from anyserve import App, Context, Request, Response

app = App()


@app.capability("who", concurrency=16)
async def who(request: Request, context: Context) -> Response:
    """The process that answers, the metadata that it got, and the milliseconds that it has."""
    left = context.deadline - trio.current_time()
    return Response(
        outputs={
            "pid": str(os.getpid()),
            "metadata": json.dumps(dict(context.metadata)),
            "left": str(left),
        }
    )


@app.capability("narrow", concurrency=1, queue=0)
async def narrow(request: Request, context: Context) -> Response:
    """Takes one request at a time; with `file`, it is there as long as the request runs."""
    if "file" in request:
        path = Path(request["file"][0].decode())
        path.write_text(str(os.getpid()))
        try:
            await trio.sleep(float(request["seconds"][0]))
        finally:
            path.unlink()
    return Response(outputs={"pid": str(os.getpid())})


@app.capability("count", concurrency=1, queue=0)
async def count(request: Request, context: Context) -> AsyncIterator[Response]:
    """`n` responses, `pause` seconds apart; `file` is there as long as it counts."""
    path = Path(request["file"][0].decode()) if "file" in request else None
    if path is not None:
        path.write_text(str(os.getpid()))
    try:
        for number in range(int(request["n"][0])):
            if "pause" in request:
                await trio.sleep(float(request["pause"][0]))
            yield Response(outputs={"number": str(number), "pid": str(os.getpid())})
    finally:
        if path is not None:
            path.unlink()
