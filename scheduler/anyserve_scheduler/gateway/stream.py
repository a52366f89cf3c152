"""ModelStreamInfer through the front door: each request goes its own way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from anyserve.errors import AnyServeError, Internal, Unavailable
from anyserve.replica.handback import MODEL_STREAM_INFER
from anyserve.replica.inference import scan
from anyserve.replica.stream_infer import IN_FLIGHT_LIMIT, ends_call
from anyserve.stream_errors import stream_error
from anyserve.transport.outbox import Outbox
from anyserve.transport.rpc import ServerStream
from anyserve.waiting import Waiter
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import incoming
from anyserve_scheduler.gateway.ways import Ways


class ForwardedStream:
    """One such call.

    Each of its requests is a call of its own to a replica, so that they can go to different ones
    and be handed back. As in a replica, those that are answered exactly once are answered in the
    order in which they came, and an error ends its request and not the stream.
    """

    def __init__(self, ways: Ways, stream: ServerStream) -> None:
        self._ways = ways
        self._stream = stream
        self._metadata = tuple(stream.metadata.items())
        self._running: set[_Request] = set()
        self._in_order: deque[_Request] = deque()
        self._outbox = Outbox(stream, self._sent, self._hold)
        self._full = False
        """Whether the next request is not read before there is room for it."""
        self._progress = Waiter()

    async def run(self) -> None:
        """Serve until the client has ended the stream and everything that is due is sent.

        Reads no further while as many requests and answers wait as one stream may have, and has
        replicas wait while the client does not read. Once the scheduler drains it reads no more,
        and raises `Unavailable` after the answers that are due. Cancelled, it cancels its requests.
        """
        outbox = self._outbox
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.run)
                with self._ways.intake.accepting() as reading:
                    while (body := await self._stream.recv_message()) is not None:
                        self._begin(body)
                        while len(self._running) + len(outbox) >= IN_FLIGHT_LIMIT:
                            self._full = True
                            await self._progress.wait()
                        self._full = False
                while self._running or outbox or outbox.behind:
                    await self._progress.wait()
                nursery.cancel_scope.cancel()
        finally:
            for request in self._running:
                request.cancel()
            self._running.clear()
        if reading.cancelled_caught:
            raise Unavailable("the scheduler is stopping")

    def emit(self, messages: Sequence[bytes]) -> None:
        """Send answers after those before them."""
        for message in messages:
            self._outbox.put((message,))

    def ended(self, request: _Request) -> None:
        """A request has all its answers; those that were behind it have their turn."""
        if request.in_order:
            self._answer_in_order()
        else:
            self._running.discard(request)
        self._progress.wake()

    def leave(self, request: _Request) -> None:
        """A request has more than one answer; those behind it have their turn."""
        self._in_order.remove(request)
        self._answer_in_order()

    def ends_with(self, error: AnyServeError) -> bool:
        """Whether the whole call ends by what a request ended with, and its status says so."""
        return ends_call(error, self._stream)

    def _begin(self, body: bytes) -> None:
        request = _Request(self)
        self._running.add(request)
        try:
            request.start(self._ways, body, self._metadata, self._stream.deadline)
        except AnyServeError as error:
            self._in_order.append(request)
            request.on_end(error)
            return
        if request.in_order:
            self._in_order.append(request)
        if self._outbox.behind:
            request.hold(True)

    def _answer_in_order(self) -> None:
        while self._in_order and self._in_order[0].complete:
            first = self._in_order.popleft()
            self.emit(first.answers)
            self._running.discard(first)

    def _sent(self) -> None:
        """Nothing is left to be sent, which matters at the end, and where there was no room."""
        if self._full or not self._running:
            self._progress.wake()

    def _hold(self, held: bool) -> None:
        """Have the replicas wait, or go on."""
        for request in tuple(self._running):
            request.hold(held)


class _Request:
    """One request of the stream."""

    _forwarding: Forwarding | None = None

    def __init__(self, stream: ForwardedStream) -> None:
        self.in_order = True
        """Whether it is answered once, in its turn."""
        self.complete = False
        self.answers: list[bytes] = []
        """That wait for their turn."""
        self._stream = stream
        self._identity = ""
        self._held = False

    def start(
        self,
        ways: Ways,
        body: bytes,
        metadata: tuple[tuple[str, str | bytes], ...],
        deadline: float,
    ) -> None:
        """Send it on; raises why that can't be."""
        head = scan(body)
        self._identity = head.id
        request = incoming(MODEL_STREAM_INFER, body, head, metadata, deadline, ways.links)
        forwarding = Forwarding(ways, request, self)
        forwarding.start()
        self._forwarding = forwarding
        self.in_order = not forwarding.decoupled

    def cancel(self) -> None:
        """Nobody reads the answers any more."""
        if self._forwarding is not None:
            self._forwarding.cancel()

    def hold(self, held: bool) -> None:
        """Take no answers where `held`, or go on with them."""
        if self._forwarding is not None and held is not self._held:
            self._held = held
            if held:
                self._forwarding.hold()
            else:
                self._forwarding.resume()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Client`."""
        if self.in_order:
            self.answers += messages
            if len(self.answers) == 1:
                return
            # It has been sent on, to one that answers more often.
            self.in_order = False
            messages, self.answers = self.answers, []
            self._stream.leave(self)
        self._stream.emit(messages)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Client`."""
        self._forwarding = None
        self.complete = True
        if error is None and self.in_order and not self.answers:
            error = Internal("the replica gave no answer")
        if error is not None:
            if self._stream.ends_with(error):
                return
            message = stream_error(error, self._identity)
            if self.in_order:
                self.answers = [message]
            else:
                self._stream.emit([message])
        self._stream.ended(self)
