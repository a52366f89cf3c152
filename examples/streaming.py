"""Streaming: a decoupled handler gives as many responses as it likes.

anyserve replica --app examples.streaming:app
anyserve infer 127.0.0.1:8001 countdown start=3 --stream
"""

from collections.abc import AsyncIterator

import trio

from anyserve import App, Context, Request, Response
from anyserve.errors import InvalidArgument

app = App()


@app.capability(
    "countdown",
    inputs={"start": "INT32[1]", "pause": "FP32[1]?"},
    outputs={"number": "INT32[1]"},
)
async def countdown(request: Request, context: Context) -> AsyncIterator[Response]:
    """From `start` down to 0, `pause` seconds apart. Cancelled, it stops where it stands."""
    start = int(request["start"][0])
    if start < 0:
        raise InvalidArgument(f"input 'start': {start} is under 0")
    pause = float(request.get("pause", [0.0])[0])
    for number in range(start, -1, -1):
        yield Response(outputs={"number": number})
        await trio.sleep(pause)
