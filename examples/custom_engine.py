"""An engine of your own: it says what it is and generates; AnyServe does the rest.

    anyserve replica --app examples.custom_engine:app
    anyserve infer 127.0.0.1:8001 decode text_input='one two three' --stream

This one is a toy, which says its prompt in capitals, a word a token. What all texts need next is
computed together, in a thread, as a real one's batches are.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from anyserve.engines.interface import BASIC, About, Delta, Engine, Prompt, Sampling, Usage
from anyserve.engines.serving import text_app


class Capitals(Engine):
    about = About(
        model="capitals",
        max_context=1024,
        slots=16,
        sampling=BASIC | {"temperature"},  # there is nothing to choose: any will do
        resumable=True,
    )

    def __init__(self) -> None:
        self._send, self._steps = trio.open_memory_channel[tuple[str, list[str], trio.Event]](16)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Capitals]:
        async with trio.open_nursery() as nursery:
            engine = cls()
            nursery.start_soon(engine.run)
            yield engine
            nursery.cancel_scope.cancel()

    async def run(self) -> None:
        async for first in self._steps:
            batch = [first]
            while self._steps.statistics().current_buffer_used:
                batch.append(self._steps.receive_nowait())
            pieces = await trio.to_thread.run_sync(model, [word for word, _, _ in batch])
            for piece, (_, answer, done) in zip(pieces, batch, strict=True):
                answer.append(piece)
                done.set()

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        words = str(prompt).split()
        for count in range(len(resume) + 1, min(len(words), sampling.max_tokens) + 1):
            answer, done = list[str](), trio.Event()
            await self._send.send((words[count - 1], answer, done))
            await done.wait()
            yield Delta(answer[0] + " ", Usage(len(words), count), token_ids=(count,))
        reason = "stop" if len(words) <= sampling.max_tokens else "length"
        yield Delta("", Usage(len(words), min(len(words), sampling.max_tokens)), reason)


def model(words: list[str]) -> list[str]:
    """One step of the "model" for a batch: blocking code, as a real one's."""
    return [word.upper() for word in words]


app = text_app(Capitals.open)
