"""From a thread to a Trio task: what the thread brings is read in order, and never far behind.

What crosses goes one way and costs the thread little: an item is put into a buffer, and Trio is
woken once for all that the threads have brought until it runs. Nothing is lost or comes twice; the
end and what it raises come after all items. Only a thread that is too far ahead waits for an
answer, and a cancellation of its task ends that wait too.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import attrs
import trio

from anyserve.waiting import Waiter

T = TypeVar("T")


class Bell:
    """Wakes Trio tasks from threads, several with one call into Trio."""

    def __init__(self) -> None:
        """Made in Trio, and rung only by threads that end before Trio does."""
        self._token = trio.lowlevel.current_trio_token()
        self._due: deque[Waiter] = deque()
        self._rung = False

    def ring(self, waiter: Waiter) -> None:
        """Have `waiter` woken soon; called in a thread, and waits for nothing."""
        self._due.append(waiter)
        # Whoever finds it rung has its waiter in the queue, which is read after that is unset.
        if not self._rung:
            self._rung = True
            self._token.run_sync_soon(self._answer)

    def _answer(self) -> None:
        self._rung = False
        while self._due:
            self._due.popleft().wake()


@attrs.define(eq=False)
class Handover(Generic[T]):
    """Items from one thread, started with `trio.to_thread.run_sync`, to one task that reads them.

    Whoever started the thread calls `end` when it is over.
    """

    bell: Bell
    """Shared by all whose threads may bring something at the same time."""
    limit: int
    """Items that the thread may be ahead of its reader."""
    _items: deque[T] = attrs.field(factory=deque)
    _news: Waiter = attrs.field(factory=Waiter)
    _room: Waiter = attrs.field(factory=Waiter)
    _ended: bool = False
    _error: Exception | None = None

    def put(self, item: T) -> None:
        """Give `item` to the reader; called in the thread.

        Waits while `limit` items lie unread, until half of them are read. Raises `Cancelled` when
        the task that started the thread is cancelled meanwhile; the item is given then too.
        """
        self._items.append(item)
        self.bell.ring(self._news)
        if len(self._items) >= self.limit:
            trio.from_thread.run(self._until_room)

    async def _until_room(self) -> None:
        while len(self._items) > self.limit // 2:
            await self._room.wait()

    def end(self, error: Exception | None = None) -> None:
        """Say that the thread is over, or won't start; the reader ends, or raises `error`."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._news.wake()

    def __aiter__(self) -> Handover[T]:
        return self

    async def __anext__(self) -> T:
        """The next item. Waits for the thread, bounded by the caller; cancelled, it takes none.

        After the last one raises what the thread ended with, if that was an error.
        """
        if self._items or self._ended:
            await trio.lowlevel.checkpoint()
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._news.wait()
        item = self._items.popleft()
        self._room.wake()
        return item
