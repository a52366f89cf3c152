"""An app whose worker dies soon after each start."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator

from anyserve import App, Context, Request, Response

app = App()


@app.lifespan
async def load(app: App) -> AsyncIterator[None]:
    timer = threading.Timer(0.1, os._exit, [7])
    timer.daemon = True
    timer.start()
    yield


@app.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    return Response(outputs={name: request[name] for name in request})
