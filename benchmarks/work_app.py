"""The app that benchmarks call: the echo, streams of small tensors, and a call that never ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import trio

from anyserve import App, Context, Request, Response
from benchmarks.notes import note
from benchmarks.pacing import Stream, next_step
from examples.echo import echo


class Steps:
    """An engine that makes the next message of all its streams at once, step after step.

    Whoever waits first makes the step for all.
    """

    def __init__(self) -> None:
        self._made: trio.Event | None = None

    async def step(self, gap: float) -> None:
        """Wait for the next step; there is one each `gap` seconds."""
        if self._made is not None:
            await self._made.wait()
            return
        made = self._made = trio.Event()
        try:
            await trio.sleep_until(next_step(trio.current_time(), gap))
        finally:
            self._made = None
            made.set()


steps = Steps()
app = App()
app.capability("echo", idempotent=True)(echo)


@app.capability("stream")
async def stream(request: Request, context: Context) -> AsyncIterator[Response]:
    """The number of each message, INT32[1], as `INPUT0` asks (`Stream.numbers`)."""
    wanted = Stream.parse(request["INPUT0"])
    for number, due in enumerate(wanted.due(trio.current_time())):
        if wanted.in_step:
            await steps.step(wanted.gap)
        elif wanted.gap:
            await trio.sleep_until(due)
        yield Response(outputs={"OUTPUT0": np.array([number], np.int32)})


# What resuming costs is measured with it; it has no token ids, which are read after a loss alone.
app.capability("resumable", resumable=True)(stream)


@app.capability("hang")
async def hang(request: Request, context: Context) -> AsyncIterator[Response]:
    """One response, then nothing until it is cancelled, which is noted at the path `INPUT0`."""
    yield Response(outputs={"OUTPUT0": np.array([0], np.int32)})
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        note(bytes(request["INPUT0"][0]).decode())
        raise
