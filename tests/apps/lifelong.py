"""An app that tells the story of its life in a file, and can be made to end it early."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from anyserve import App, Context, Request, Response

app = App()
STORY = Path(os.environ.get("ANYSERVE_TEST_STORY", "story"))
failing = trio.Event()


def tell(event: str) -> None:
    with STORY.open("a") as story:
        story.write(f"{event}\n")


@app.lifespan
async def live(app: App) -> AsyncIterator[None]:
    """With a task in the background, which fails when the handler `die` says so."""
    global failing
    failing = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fail)
        tell("loaded")
        try:
            yield
        finally:
            tell("unloading")
        await trio.sleep(0.01)
        tell("unloaded")
        nursery.cancel_scope.cancel()


async def _fail() -> None:
    await failing.wait()
    raise OSError("the disk is gone")


@app.capability("live")
async def answer(request: Request, context: Context) -> Response:
    return Response(outputs={name: request[name] for name in request})


@app.capability("die")
async def die(request: Request, context: Context) -> Response:
    failing.set()
    await trio.sleep_forever()
    return Response()


@app.capability("linger")
async def linger(request: Request, context: Context) -> Response:
    """Tells when it begins and when it is cancelled."""
    tell("lingers")
    try:
        await trio.sleep_forever()
    finally:
        tell("let go")
    return Response()
