"""One text on its way from SGLang: its stream, and how it is given up."""

from __future__ import annotations

import attrs
import trio

from anyserve.engines.sglang.client import Client
from anyserve.engines.sglang.connection import Connection
from anyserve.engines.sglang.events import Events
from anyserve.errors import AnyServeError, Unavailable

ABORT_TIME = 2.0
"""Seconds that giving up may take."""
_PATIENCE = (0.2, 0.4, 0.8)
"""Seconds until the server is told again: a request that it has not quite taken is not aborted."""
_END = b"[DONE]"


@attrs.define(eq=False)
class TextStream:
    """A request's stream. `aclose` ends it, wherever it is."""

    client: Client
    rid: str
    begun: bool = False
    """Something of the text has come."""
    _connection: Connection | None = None
    _events: Events = attrs.field(factory=Events)

    @property
    def last_heard(self) -> float:
        """When bytes came last."""
        return self._connection.last_used if self._connection is not None else 0.0

    def fail(self, why: str) -> None:
        """Have whoever reads get `Unavailable` with that reason, now."""
        if self._connection is not None:
            self._connection.close(why)

    async def open(self, body: bytes) -> None:
        """Ask, and wait for the head of the answer, bounded by the caller.

        Raises `Unavailable`, or what a bad status means.
        """
        self._connection = await self.client.connect()
        request = self.client.request("POST", "/generate", body)
        if await self._connection.ask(request) >= 300:
            raise await self.client.refusal(self._connection)

    async def receive(self) -> list[bytes]:
        """The events that come next, one at least; bounded by the caller.

        Raises `Unavailable`, also where the stream ends: whoever has its last event asks no more.
        """
        assert self._connection is not None
        while True:
            data = await self._connection.receive()
            if not data:
                raise Unavailable("SGLang ends the stream before the text")
            events = [event for event in self._events.feed(data) if event != _END]
            if events:
                self.begun = True
                return events

    async def aclose(self, *, ended: bool) -> None:
        """Have the server give the text up, if it has not `ended`, and let the connection go.

        Shielded; waits for the end of the stream, `ABORT_TIME` at most.
        """
        connection = self._connection
        if connection is None:
            return
        with trio.move_on_after(ABORT_TIME, shield=True):
            if not ended or not await self._drained(connection, _PATIENCE[0]):
                await self._abort(connection)
        self.client.put_back(connection)

    async def _abort(self, connection: Connection) -> None:
        for seconds in _PATIENCE:
            if connection.closed:
                return
            try:
                await self.client.tell("/abort_request", {"rid": self.rid}, within=ABORT_TIME)
            except AnyServeError:
                return  # closing the connection is what is left
            if await self._drained(connection, seconds):
                return

    async def _drained(self, connection: Connection, seconds: float) -> bool:
        """Read what is left of the stream, for `seconds`; whether it has ended."""
        with trio.move_on_after(seconds):
            try:
                while not connection.ended:
                    await connection.receive()
            except Unavailable:
                return True
        return connection.ended
