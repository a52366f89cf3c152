"""Encodes the texts of many requests together: what has come while a batch runs is the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
import trio

from anyserve.engines.embedding.grouping import plan
from anyserve.engines.interface import Vectors
from anyserve.errors import AnyServeError, Internal, Unavailable

Encode = Callable[[list[str]], Vectors]
"""Turns n texts into vectors of shape [n, d]; called in a thread, one call at a time."""

MAX_WAITING = 256
"""Requests that are being encoded; more wait before they queue."""


@attrs.define(eq=False)
class _Request:
    """One request's texts and what there is of their vectors."""

    texts: Sequence[str]
    vectors: Vectors
    """FP32 [n, d]; the first `encoded` rows are filled."""
    encoded: int = 0
    error: AnyServeError | None = None
    over: trio.Event = attrs.field(factory=trio.Event)

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self.texts[self.encoded :]]

    def end(self, error: AnyServeError | None = None) -> None:
        self.error = error
        self.over.set()


@attrs.define(eq=False)
class Batcher:
    """`run` encodes what `encode` calls bring, until it is cancelled."""

    _encode: Encode
    dimensions: int
    batches: int = 0
    """Batches encoded so far."""
    _closed: bool = False
    _waiting: list[_Request] = attrs.field(factory=list)
    _arrival: trio.Event = attrs.field(factory=trio.Event)
    _room: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_WAITING))

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """The vectors of `texts`, FP32 [n, d].

        Waits until all are encoded, bounded by the caller's scope. Cancelled, the texts that are
        not in a batch yet never will be, and the batch goes on for the others in it. Raises
        `Internal` when encoding fails, `Unavailable` when the engine is closing.
        """
        request = _Request(texts, np.empty((len(texts), self.dimensions), np.float32))
        async with self._room:
            if self._closed:
                raise _closing()
            if texts:
                self._waiting.append(request)
                self._arrival.set()
                try:
                    await request.over.wait()
                finally:
                    self._drop(request)
        if request.error is not None:
            raise request.error
        return request.vectors

    async def run(self) -> None:
        """Encode batch after batch in a thread. Ends only by being cancelled, after the batch that
        is running; requests still waiting then get `Unavailable`."""
        try:
            while True:
                await self._arrival.wait()
                self._arrival = trio.Event()
                while self._waiting:
                    await self._run_batch()
        finally:
            self._closed = True
            for request in self._waiting:
                request.end(_closing())

    async def _run_batch(self) -> None:
        counts = plan([request.lengths for request in self._waiting])
        shares = [pair for pair in zip(list(self._waiting), counts, strict=True) if pair[1]]
        texts = [
            text
            for request, count in shares
            for text in request.texts[request.encoded : request.encoded + count]
        ]
        try:
            vectors = await trio.to_thread.run_sync(self._encode, texts)
        except Exception as error:
            for request, _ in shares:
                self._drop(request)
                request.end(Internal(f"encoding failed: {type(error).__name__}: {error}"))
            return
        self.batches += 1
        row = 0
        for request, count in shares:
            request.vectors[request.encoded : request.encoded + count] = vectors[row : row + count]
            request.encoded += count
            row += count
            if request.encoded == len(request.texts):
                self._drop(request)
                request.end()

    def _drop(self, request: _Request) -> None:
        if request in self._waiting:
            self._waiting.remove(request)


def _closing() -> AnyServeError:
    return Unavailable("the embedding engine is closing")
