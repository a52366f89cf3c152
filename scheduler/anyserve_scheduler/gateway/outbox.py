"""What is to be sent on a stream: at once where there is room, else as the client reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from anyserve.burst import defer
from anyserve.transport.rpc import ServerStream
from anyserve.waiting import Waiter

_BATCH = 16
"""Messages that are sent in one piece, where they are due at once and small."""


class Outbox:
    """Messages of one stream, in their order."""

    def __init__(
        self, stream: ServerStream, on_behind: Callable[[bool], None], on_sent: Callable[[], None]
    ) -> None:
        """on_behind: called when messages begin to wait for the client, and when none do any more.

        on_sent: called when nothing is left to be sent.
        """
        self.behind = False
        """Whether messages wait for the client to read."""
        self._stream = stream
        self._on_behind = on_behind
        self._on_sent = on_sent
        self._messages: deque[bytes] = deque()
        self._sender = Waiter()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: bytes) -> None:
        """Send a message after those before it."""
        self._messages.append(message)
        if not self.behind and not defer(self):
            self.settle()

    def settle(self) -> None:
        """See `Outlet`; `run` does what there is no room for."""
        messages = self._messages
        while messages and not self.behind:
            batch = [messages.popleft() for _ in range(min(_BATCH, len(messages)))]
            if not self._stream.send_messages_now(batch):
                messages.extendleft(reversed(batch))
                self.behind = True
                self._sender.wake()
                self._on_behind(True)
                return
        if not self.behind:
            self._on_sent()

    async def run(self) -> None:
        """Send what there was no room for, as the client reads, until cancelled."""
        while True:
            while not self.behind:
                await self._sender.wait()
            while self._messages:
                await self._stream.send_message(self._messages.popleft())
            self.behind = False
            self._on_behind(False)
            self._on_sent()
