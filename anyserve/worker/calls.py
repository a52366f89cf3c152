"""A handler's calls to other capabilities, from arrays to messages and back."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from anyserve.capability import Attribute
from anyserve.errors import AnyServeError, Unimplemented
from anyserve.link import frames
from anyserve.link.frames import Buffer
from anyserve.messages import OutputValue, Result
from anyserve.waiting import Waiter

_CREDIT_BATCH = frames.INITIAL_CREDIT // 2
"""Responses taken before their credit is given back."""


class Called(Protocol):
    """A request that a handler has sent, on its way."""

    def consumed(self, responses: int) -> None:
        """So many more responses may come."""
        ...

    def cancel(self) -> None:
        """Nobody wants the rest; nothing happens where it has ended."""
        ...


class Answered:
    """What comes back, for the handler that awaits it."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._news = Waiter()
        self._ended = False
        self._error: AnyServeError | None = None

    def on_response(self, pieces: Sequence[Buffer]) -> None:
        """The next ModelInferResponse, to be joined; it is copied."""
        self._messages.append(b"".join(pieces))
        self._news.wake()

    def on_end(self, error: AnyServeError | None) -> None:
        """There are no more, or what was called has failed."""
        self._ended, self._error = True, error
        self._news.wake()

    async def receive(self) -> bytes | None:
        """The next message, None after the last; raises what was called has failed with.

        Waits as long as the handler's scope lets it; cancelled, it has taken nothing.
        """
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._news.wait()
        return self._messages.popleft()


Begin = Callable[[bytes, Sequence[Buffer], bool, Answered], Called]
"""Sends a ModelInferRequest: without its raw contents, and those, which are copied.

The flag says that exactly one response is wanted.
"""


class HandlerCalls:
    """The `Caller` of one request's handler."""

    def __init__(self, request_id: str, begin: Begin) -> None:
        """request_id: that of the handler's own request, which goes along."""
        self._request_id = request_id
        self._begin = begin
        self._open: set[Called] = set()

    def close(self) -> None:
        """The handler has ended: so does what it called and has not read to its end."""
        for called in self._open:
            called.cancel()

    async def call(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute],
        version: str,
    ) -> Result:
        """See `Context.call`."""
        running = self._run(capability, inputs, parameters, version, once=True)
        async with aclosing(running) as responses:
            results = [result async for result in responses]
        if len(results) != 1:
            raise Unimplemented(f"{capability!r} gave {len(results)} responses: use stream")
        return results[0]

    def stream(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute],
        version: str,
    ) -> AsyncGenerator[Result, None]:
        """See `Context.stream`."""
        return self._run(capability, inputs, parameters, version, once=False)

    async def _run(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute],
        version: str,
        *,
        once: bool,
    ) -> AsyncGenerator[Result, None]:
        # Only then, since they bring betterproto2 along, which most workers do without.
        from anyserve_protos import codec
        from anyserve_protos.inference import ModelInferResponse

        from anyserve.infer_messages import decode_response, request_parts

        answered = Answered()
        identity = self._request_id
        head, raw = request_parts(capability, inputs, parameters, identity, version=version)
        called = self._begin(head, raw, once, answered)
        self._open.add(called)
        taken = 0
        try:
            while (message := await answered.receive()) is not None:
                taken += 1
                if taken % _CREDIT_BATCH == 0:
                    called.consumed(_CREDIT_BATCH)
                yield decode_response(codec.decode(ModelInferResponse, message))
        finally:
            self._open.discard(called)
            called.cancel()
