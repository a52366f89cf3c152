"""An app that loads when the test says so."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from anyserve import App, Context, Request, Response

app = App()
GATE = Path(os.environ.get("ANYSERVE_TEST_GATE", "gate"))
"""Loading waits until this file is there."""


@app.lifespan
async def load(app: App) -> AsyncIterator[None]:
    """`GATE.loading` is there while it waits."""
    loading = GATE.with_suffix(".loading")
    loading.write_text(str(os.getpid()))
    try:
        while not GATE.exists():  # noqa: ASYNC110 - another process makes it
            await trio.sleep(0.01)
    finally:
        loading.unlink()
    yield


@app.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    return Response(outputs={name: request[name] for name in request})
