"""What is to be sent on a stream: at once where there is room, else as the client reads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence

from anyserve.burst import defer, nothing
from anyserve.transport.rpc import Buffer, ServerStream
from anyserve.waiting import Waiter

_BATCH = 16
"""Messages that are sent in one piece, where they are due at once and small."""


class Outbox:
    """Messages of one stream, in their order."""

    def __init__(
        self,
        stream: ServerStream,
        on_sent: Callable[[], None],
        on_behind: Callable[[bool], None] = lambda behind: None,
    ) -> None:
        """on_sent: called when nothing is left to be sent.

        on_behind: called when messages begin to wait for the client, and when none do any more.
        """
        self.behind = False
        """Whether messages wait for the client to read."""
        self._stream = stream
        self._on_sent = on_sent
        self._on_behind = on_behind
        self._messages: deque[tuple[Sequence[Buffer], Callable[[], None]]] = deque()
        self._sender = Waiter()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Sequence[Buffer], sent: Callable[[], None] = nothing) -> None:
        """Send a message of these pieces after those before it; `sent` is called when it is."""
        self._messages.append((message, sent))
        if not self.behind and not defer(self):
            self.settle()

    def settle(self) -> None:
        """See `Outlet`; `run` does what there is no room for."""
        messages = self._messages
        while messages and not self.behind:
            if len(messages) == 1:
                batch = [messages[0][0]]
            else:
                batch = [message for message, _ in itertools.islice(messages, _BATCH)]
            if not self._stream.send_messages_now(batch):
                self.behind = True
                self._sender.wake()
                self._on_behind(True)
                return
            for _ in batch:
                messages.popleft()[1]()
        if not self.behind:
            self._on_sent()

    async def run(self) -> None:
        """Send what there was no room for, as the client reads, until cancelled."""
        while True:
            while not self.behind:
                await self._sender.wait()
            while self._messages:
                message, sent = self._messages.popleft()
                try:
                    await self._stream.send_message(message)
                finally:
                    sent()
            self.behind = False
            self._on_behind(False)
            self._on_sent()

    def drop(self) -> None:
        """Send nothing of what is left."""
        while self._messages:
            self._messages.popleft()[1]()
