"""Apps that cannot start, each in its own way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from anyserve import App, Context, Request, Response

not_an_app = 5
empty = App()
unloadable = App()


@unloadable.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    return Response()


@unloadable.lifespan
async def load(app: App) -> AsyncIterator[None]:
    raise OSError("weights.bin: no such file")
    yield


def factory() -> App:
    raise ValueError("no such\nlicence")


def dies() -> App:
    os._exit(9)
