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
    """`GATE.loading` says that it waits."""
    GATE.with_suffix(".loading").write_text(str(os.getpid()))
    while not GATE.exists():  # noqa: ASYNC110 - another process makes it
        await trio.sleep(0.01)
    yield


@app.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    return Response(outputs={name: request[name] for name in request})
