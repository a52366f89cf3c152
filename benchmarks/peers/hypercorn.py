# /// script
# requires-python = "==3.11.*"
# dependencies = ["hypercorn[trio]==0.18.0"]
# ///
"""Hypercorn's Trio worker with a body that comes in and goes out: `… PORT`."""

from __future__ import annotations

import sys
from typing import Any

import trio
from hypercorn.config import Config  # type: ignore[import-not-found]
from hypercorn.trio import serve  # type: ignore[import-not-found]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app."""
    if scope["type"] != "http":
        raise NotImplementedError  # Hypercorn takes that for an app without a lifespan
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.accesslog = None
    trio.run(serve, echo, config)
