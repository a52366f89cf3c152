"""What a handler in a worker calls: requests and responses over the worker link.

Where they are large they lie in the arena of the worker that wrote them, and the other worker
reads them there. The replica passes on where, and tells the owner when they are of no more use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

import attrs

from anyserve.errors import AnyServeError
from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Buffer, Frame, Kind, Part
from anyserve.objects.leases import Block, Lease, LeaseSet
from anyserve.objects.mapping import Reader
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Asked, Call, Called, Reply


@attrs.frozen(eq=False)
class LinkEnd:
    """The replica's end of a worker link, for all calls on it."""

    channel: FrameChannel
    dispatcher: Dispatcher
    """Which runs what handlers call."""
    reader: Reader = attrs.field(factory=Reader)
    """Of the worker's arena."""

    def views(self, parts: Sequence[Part]) -> list[memoryview]:
        """The parts as they can be read here; raises as `Reader.view` does."""
        view = self.reader.view
        return [view(part) if isinstance(part, Block) else memoryview(part) for part in parts]

    def release(self, block: Block) -> None:
        """Tell the worker that what it lent is free again."""
        self.channel.send(frames.encode_release(block))

    def release_all(self, parts: Sequence[Part]) -> None:
        """The same of all parts that it lent."""
        for part in parts:
            if isinstance(part, Block):
                self.release(part)


class LinkedCalls:
    """All that the handler of one call in the worker calls."""

    def __init__(self, link: LinkEnd, number: int, parent: Call) -> None:
        """number: of the call on the link."""
        self._link = link
        self._number = number
        self._parent = parent
        self._open: dict[int, _LinkedCall] = {}
        """By the number that the handler gave them."""
        self._lent: deque[Reply] = deque()
        """Responses in shared memory that the worker has not copied yet, the oldest first."""

    def begin(self, frame: Frame) -> None:
        """The handler calls another capability."""
        number, once, parts = frames.decode_call(frame)
        called = self._open[number] = _LinkedCall(self, number, self._link)
        called.start(self._parent, once, parts)

    def refuse(self, frame: Frame) -> None:
        """The handler calls another capability, and is to end itself: it hears so."""
        _, _, parts = frames.decode_call(frame)
        self._link.release_all(parts)

    def on_frame(self, frame: Frame) -> None:
        """The handler says something of what it has called."""
        if frame.kind == Kind.CALL_TAKEN:
            self._lent.popleft().release()
            return
        number, body = frames.decode_called(frame)
        called = self._open.get(number)
        if called is None:
            return  # it has ended meanwhile
        if frame.kind == Kind.CALL_CREDIT:
            called.request.consumed(int.from_bytes(body, "little"))
        else:
            del self._open[number]
            called.cancel()

    def cancel(self) -> None:
        """Nobody waits for what the handler has called."""
        while self._open:
            self._open.popitem()[1].cancel()

    def close(self) -> None:
        """The handler has ended, and reads nothing any more."""
        self.cancel()
        while self._lent:
            self._lent.popleft().release()

    def respond(self, number: int, reply: Reply) -> None:
        """Give the handler a response."""
        if reply.parts:
            self._lent.append(reply)
            self._send(frames.encode_called_parts(self._number, number, reply.parts))
        else:
            self._tell(Kind.CALLED, number, b"".join(reply.pieces))
            reply.release()

    def end(self, number: int, error: AnyServeError | None) -> None:
        """Tell the handler that there are no more."""
        del self._open[number]
        if error is None:
            self._tell(Kind.CALL_END, number)
        else:
            self._tell(Kind.CALL_ERROR, number, frames.error_bytes(error))

    def _tell(self, kind: Kind, number: int, body: Buffer = b"") -> None:
        self._send(frames.encode_called(kind, self._number, number, body))

    def _send(self, frame: Buffer | Sequence[Buffer]) -> None:
        self._link.channel.send(frame)


class _LinkedCall:
    """One such request, and its `Answered`."""

    request: Called

    def __init__(self, calls: LinkedCalls, number: int, link: LinkEnd) -> None:
        self._calls = calls
        self._number = number
        self._link = link
        self._leases = LeaseSet()
        """What of the request lies in the worker's arena; others may hold it longer."""

    def start(self, parent: Call, once: bool, parts: Sequence[Part]) -> None:
        """Begin it; the parts are a ModelInferRequest without its raw contents, and those."""
        link = self._link
        try:
            views = link.views(parts)
        except AnyServeError as error:
            link.release_all(parts)
            self.on_end(error)
            return
        lent: list[Lease | None] = [
            Lease(part, view, link.release) if isinstance(part, Block) else None
            for part, view in zip(parts, views, strict=True)
        ]
        for lease in lent:
            if lease is not None:
                self._leases.add(lease)
        asked = Asked(bytes(views[0]), views[1:], lent[1:], once)
        self.request = link.dispatcher.calls.request(parent, asked, self)
        self.request.start()

    def cancel(self) -> None:
        """Nobody waits for it."""
        self.request.cancel()
        self._leases.release_all()

    def on_reply(self, reply: Reply) -> None:
        """See `Answered`."""
        self._calls.respond(self._number, reply)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answered`."""
        self._leases.release_all()
        self._calls.end(self._number, error)


def lent_reply(link: LinkEnd, parts: Sequence[Part]) -> Reply:
    """A response of the link's worker, some parts of which lie in its arena."""
    return Reply(link.views(parts), partial(link.release_all, parts), parts)
