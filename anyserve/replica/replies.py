"""The replies of one request, for a task that awaits them."""

from __future__ import annotations

from collections import deque
from types import TracebackType

import trio

from anyserve.errors import AnyServeError
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Reply
from anyserve.replica.execution import Execution
from anyserve.waiting import Waiter


class Replies:
    """A request that runs while the block does, which leaves nothing of it behind."""

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self._execution = Execution(dispatcher, call, self)
        self._replies: deque[Reply] = deque()
        self._news = Waiter()
        self._ended = False
        self._error: AnyServeError | None = None

    async def __aenter__(self) -> Replies:
        """Start the request, which may still wait for its slot; raises as `Execution.start`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._execution.start()
        return self

    async def receive(self) -> Reply | None:
        """The next reply, or None after the last; its buffers are the caller's to release.

        Waits for a slot and for the worker; the caller's scope bounds that. Cancelled, it has
        taken nothing. Raises what the request failed with, after the replies before that.
        """
        while not self._replies:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return None
            await self._news.wait()
        self._execution.consumed()
        return self._replies.popleft()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._execution.cancel(error if isinstance(error, AnyServeError) else None)
        while self._replies:
            self._replies.popleft().release()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        self._replies.append(reply)
        self._news.wake()

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        self._ended, self._error = True, error
        self._news.wake()
