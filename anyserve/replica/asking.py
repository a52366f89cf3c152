"""Questions about models that are not here, asked of the scheduler's fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from anyserve.errors import AnyServeError, Internal
from anyserve.replica.handback import Handback, RequestMetadata, without_control
from anyserve.transport.rpc import Metadata, decode, encode
from anyserve.transport.wire import NotTaken
from anyserve.waiting import Waiter


async def ask_fleet(
    handback: Handback | None,
    path: str,
    request: Any,
    reply_type: type[Any],
    refused: AnyServeError,
    metadata: RequestMetadata,
) -> Any:
    """What the fleet answers to a client's question that this replica has no answer to.

    refused: why; raised where there is nobody to ask: no scheduler, or it is away, or the question
    is its own. metadata: of the client's call.

    Waits for the scheduler, as long as the client's deadline and the scheduler link last.
    Cancelled, the question is. Raises what the scheduler answers.
    """
    channel = handback.channel_for(metadata) if handback is not None else None
    if channel is None or not refused.elsewhere:
        raise refused
    answer = _Answer()
    call = channel.call(
        path,
        encode(request, type(request)),
        answer,
        deadline=trio.current_effective_deadline(),
        metadata=without_control(metadata),
    )
    try:
        message = await answer.receive()
    except NotTaken:
        raise refused from None
    finally:
        call.cancel()
    return decode(message, reply_type)


class _Answer:
    """The answer to one call, for the task that awaits it."""

    def __init__(self) -> None:
        self._messages: Sequence[bytes] = ()
        self._ended = False
        self._error: AnyServeError | None = None
        self._news = Waiter()

    async def receive(self) -> bytes:
        """The message; waits for the end of the call, and raises what it has failed with."""
        while not self._ended:
            await self._news.wait()
        if self._error is not None:
            raise self._error
        if not self._messages:
            raise Internal("the scheduler gave no answer")
        return self._messages[-1]

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        self._messages = messages

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        self._ended, self._error = True, error
        self._news.wake()
