"""Several servers of one model as one engine: each text goes to the one with the least to do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager

import attrs

from anyserve.engines.errors import CannotLoad
from anyserve.engines.interface import About, Delta, Engine, Vectors
from anyserve.engines.prompts import Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.errors import Unavailable


@attrs.define(eq=False)
class Member:
    """A server, and what runs on it from here."""

    engine: SglangEngine
    running: int = 0

    def share(self) -> float:
        """Requests for each slot, those of others too."""
        return (self.running + self.engine.others()) / self.engine.about.slots


@attrs.define(eq=False)
class EnginePool(Engine):
    """Servers that differ in nothing but their load. Made by `EnginePool.open`."""

    about: About
    members: Sequence[Member]

    @classmethod
    @asynccontextmanager
    async def open(
        cls, openers: Sequence[Callable[[], AbstractAsyncContextManager[SglangEngine]]]
    ) -> AsyncIterator[Engine]:
        """Open all engines, one after the other; one alone needs no pool.

        Raises as they do, and `CannotLoad` for servers that aren't alike.
        """
        async with AsyncExitStack() as stack:
            engines = [await stack.enter_async_context(opener()) for opener in openers]
            first = engines[0].about
            if len(engines) == 1:
                yield engines[0]
                return
            if any(engine.served.half is not None for engine in engines):
                raise CannotLoad("halves of pairs are told apart by the scheduler: one url each")
            for engine in engines[1:]:
                if attrs.evolve(engine.about, slots=first.slots) != first:
                    raise CannotLoad(
                        f"SGLang at {engine.client.address} differs from the one at"
                        f" {engines[0].client.address}: servers of one pool are alike"
                    )
            slots = sum(engine.about.slots for engine in engines)
            yield cls(attrs.evolve(first, slots=slots), [Member(engine) for engine in engines])

    def _pick(self) -> Member:
        """The member with the smallest share of its slots in use, of those that are up."""
        up = []
        for member in self.members:
            try:
                member.engine.monitor.check()
            except Unavailable as error:
                why = error
            else:
                up.append(member)
        if not up:
            raise why
        return min(up, key=Member.share)

    async def health(self) -> None:
        """Raises `Unavailable` when all are down."""
        self._pick()

    def others(self) -> int:
        """The sum of theirs."""
        return sum(member.engine.others() for member in self.members)

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`."""
        member = self._pick()
        member.running += 1
        try:
            deltas = member.engine.generate(prompt, sampling, resume=resume, request_id=request_id)
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta
        finally:
            member.running -= 1

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Engine.embed`."""
        member = self._pick()
        member.running += 1
        try:
            return await member.engine.embed(texts)
        finally:
            member.running -= 1
