"""The texts of one request: one or `n` at once, in pieces or whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import attrs
import trio

from anyserve.engines.fields import TextRequest
from anyserve.engines.interface import Delta, Engine, Half
from anyserve.engines.sampling import Sampling


@asynccontextmanager
async def generating(
    engine: Engine, asked: TextRequest, request_id: str
) -> AsyncIterator[AsyncIterator[Delta]]:
    """The pieces of all texts that are asked for, as they come; leaving gives up what is left.

    Whoever reads slowly holds all of them up. Raises as `Engine.generate` does; with several
    texts, from inside an exception group, when the first one fails.
    """
    if asked.sampling.n == 1 or engine.about.samples:
        deltas = _at(engine, asked, 0).generate(
            asked.prompt, asked.sampling, resume=asked.resume, request_id=request_id
        )
        async with aclosing(deltas):
            yield deltas
        return
    send, receive = trio.open_memory_channel[Delta](0)
    async with trio.open_nursery() as nursery, receive:
        async with send:
            for index in range(asked.sampling.n):
                one = Sample(engine, asked, index, request_id, send.clone())
                nursery.start_soon(one.run, name=f"text {index}")
        yield receive
        nursery.cancel_scope.cancel()


def _at(engine: Engine, asked: TextRequest, index: int) -> Engine:
    """The engine for one of the texts: where it is half of a pair, at the text's rendezvous."""
    if asked.rendezvous is not None and isinstance(engine, Half):
        return engine.at(asked.rendezvous.sample(index))
    return engine


@attrs.frozen(eq=False)
class Sample:
    """One of several texts."""

    engine: Engine
    asked: TextRequest
    index: int
    request_id: str
    send: trio.MemorySendChannel[Delta]

    @property
    def sampling(self) -> Sampling:
        """That of this text alone: from one seed, each text has its own."""
        seed = self.asked.sampling.seed
        if seed is not None:
            seed = (seed + self.index) % 2**64
        return attrs.evolve(self.asked.sampling, n=1, seed=seed)

    async def run(self) -> None:
        """Send the text's pieces; ends with it."""
        deltas = _at(self.engine, self.asked, self.index).generate(
            self.asked.prompt, self.sampling, request_id=f"{self.request_id}-{self.index}"
        )
        async with self.send, aclosing(deltas):
            async for delta in deltas:
                await self.send.send(attrs.evolve(delta, index=self.index))


@attrs.define
class Joiner:
    """Puts the pieces of texts together."""

    start: str = ""
    """What stands before each text."""
    _pieces: dict[int, list[Delta]] = attrs.field(factory=dict)
    """By the text's index."""

    def add(self, delta: Delta) -> Delta | None:
        """The whole text whose last piece is `delta`; None where there is more to come."""
        pieces = self._pieces.setdefault(delta.index, [])
        pieces.append(delta)
        if delta.finish_reason is None:
            return None
        del self._pieces[delta.index]
        return attrs.evolve(
            delta,
            text=self.start + "".join([piece.text for piece in pieces]),
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(token for piece in pieces for token in piece.logprobs),
        )
