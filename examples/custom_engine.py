"""An engine of your own: requests gathered into batches, tokens streamed, cancellation that counts.

    anyserve replica --app examples.custom_engine:app
    anyserve infer 127.0.0.1:8001 shout text_input='one two three' --stream

The engine is a toy, which "generates" the words of its prompt in capitals. What is around it is
what a real one needs: all requests are stepped at once, in a thread, and those that are cancelled
are dropped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import attrs
import trio

from anyserve import App, Context, Request, Response


@attrs.define(eq=False)
class Generation:
    """One request in the engine."""

    words: list[str]
    pieces: trio.MemorySendChannel[str]


class Engine:
    """Steps every generation that runs by one word at a time."""

    def __init__(self) -> None:
        self._running: list[Generation] = []
        self._arrived = trio.Event()

    async def run(self) -> None:
        """Step until cancelled; sleeps while there is nothing to do."""
        while True:
            if not self._running:
                self._arrived = trio.Event()
                await self._arrived.wait()
            batch = list(self._running)
            pieces = await trio.to_thread.run_sync(_step, [g.words[0] for g in batch])
            for generation, piece in zip(batch, pieces, strict=True):
                del generation.words[0]
                if generation in self._running:  # not cancelled during the step
                    await generation.pieces.send(piece)
                if not generation.words and generation in self._running:
                    self._running.remove(generation)
                    generation.pieces.close()

    async def generate(self, prompt: str) -> AsyncGenerator[str, None]:
        """The words of `prompt` in capitals, as they come. Cancelled, the engine forgets it."""
        send, receive = trio.open_memory_channel[str](64)
        generation = Generation(prompt.split(), send)
        if not generation.words:
            return
        self._running.append(generation)
        self._arrived.set()
        try:
            async for piece in receive:
                yield piece
        finally:
            if generation in self._running:
                self._running.remove(generation)


def _step(words: list[str]) -> list[str]:
    """One step of the "model" for a batch: blocking code, as a real one's."""
    return [word.upper() for word in words]


app = App()
engine = Engine()


@app.lifespan
async def lifespan(app: App) -> AsyncIterator[None]:
    """The engine's loop lives as long as the worker."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        app.describe("shout", model="capitals")
        yield
        nursery.cancel_scope.cancel()


@app.capability(
    "shout",
    inputs={"text_input": "BYTES[1]"},
    outputs={"text_output": "BYTES[1]"},
    concurrency=16,
)
async def words(request: Request, context: Context) -> AsyncIterator[Response]:
    """A response a word."""
    async with aclosing(engine.generate(request["text_input"][0].decode())) as pieces:
        async for piece in pieces:
            yield Response(outputs={"text_output": piece + " "})
