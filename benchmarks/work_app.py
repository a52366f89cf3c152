"""The app that benchmarks call: the echo, streams of small tensors, and a call that never ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import trio

from anyserve import App, Context, Request, Response
from benchmarks.notes import note
from benchmarks.pacing import Stream
from examples.echo import echo

app = App()
app.capability("echo", idempotent=True)(echo)


@app.capability("stream")
async def stream(request: Request, context: Context) -> AsyncIterator[Response]:
    """The number of each message, INT32[1], as `INPUT0` asks (`Stream.numbers`)."""
    wanted = Stream.parse(request["INPUT0"])
    for number, due in enumerate(wanted.due(trio.current_time())):
        if wanted.gap:
            await trio.sleep_until(due)
        yield Response(outputs={"OUTPUT0": np.array([number], np.int32)})


@app.capability("hang")
async def hang(request: Request, context: Context) -> AsyncIterator[Response]:
    """One response, then nothing until it is cancelled, which is noted at the path `INPUT0`."""
    yield Response(outputs={"OUTPUT0": np.array([0], np.int32)})
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        note(bytes(request["INPUT0"][0]).decode())
        raise
