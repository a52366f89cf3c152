"""A request that runs here where that is offered, and else elsewhere, by the scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import AnyServeError, Unimplemented
from anyserve.link.frames import INITIAL_CREDIT
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Reply
from anyserve.replica.execution import Execution
from anyserve.replica.handback import MODEL_INFER, MODEL_STREAM_INFER, Handback, Relay
from anyserve.stream_errors import unwrapped
from anyserve.traces import Trace
from anyserve.transport.rpc import Metadata


class AnywhereRequest(ABC):
    """A `Consumer` here, and `Answers` of the scheduler elsewhere.

    It ends once: by `finish`, or by `cancel`.
    """

    _execution: Execution | None = None
    _relay: Relay | None = None
    _head: InferRequestHead | None = None
    _over = False
    _responses = 0
    _unread = 0

    def __init__(
        self,
        dispatcher: Dispatcher,
        handback: Handback | None,
        *,
        once: bool,
        metadata: Mapping[str, str],
        deadline: float,
        trace: Trace | None,
        name: str,
    ) -> None:
        """once: whether one response is wanted. metadata, deadline: as of a gRPC call.

        trace: where the request is in one, whatever the metadata say.

        handback: None without a scheduler. name: of its span in a trace.
        """
        self._dispatcher = dispatcher
        self._handback = handback
        self._once = once
        self._metadata = metadata
        self._deadline = deadline
        self._trace = trace
        self._name = name

    @abstractmethod
    def accept(self, head: InferRequestHead) -> Call:
        """Match it to a capability; raises why it can't be served here."""

    @abstractmethod
    def respond(self, reply: Reply) -> None:
        """Give whoever asked a response, whose buffers are theirs to release."""

    @abstractmethod
    def finish(self, error: AnyServeError | None) -> None:
        """Tell whoever asked that there are no more."""

    def begin(self, head: InferRequestHead) -> None:
        """Run a request; what is wrong with it is told as its end."""
        self._head = head
        try:
            call = self.accept(head)
            self._execution = Execution(self._dispatcher, call, self, self._name)
            self._execution.start()
        except AnyServeError as error:
            self._refused(error)

    def consumed(self, responses: int) -> None:
        """The handler has taken so many."""
        self._unread -= responses
        if self._execution is not None:
            for _ in range(responses):
                self._execution.consumed()
        elif self._relay is not None and not self._over and self._unread < INITIAL_CREDIT:
            self._relay.call.resume()

    def cancel(self) -> None:
        """Nobody wants the rest; nothing happens where it has ended."""
        if not self._over:
            self._close()
            self._stop()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        self._responses += 1
        if self._once and self._responses > 1:
            reply.release()
            self._stop()
            self._end(Unimplemented("what was called answers more than once: use stream"))
            return
        self._unread += 1
        self.respond(reply)

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        for message in messages:
            if self._over:
                return
            response = message if self._once else unwrapped(message)
            if isinstance(response, AnyServeError):
                self._stop()
                self._end(response)
            else:
                self.on_reply(Reply((response,)))
        if not self._over and self._unread >= INITIAL_CREDIT:
            assert self._relay is not None
            self._relay.call.hold()

    def on_end(self, error: AnyServeError | None, metadata: Metadata | None = None) -> None:
        """See `Consumer` and `Answers`."""
        if error is not None and self._relay is None and not self._responses:
            self._refused(error)
        elif error is None and self._once and not self._responses:
            self._end(Unimplemented("what was called gave no answer: use stream"))
        else:
            self._end(error)

    def _refused(self, error: AnyServeError) -> None:
        """It is not served here: the scheduler may know who does."""
        handback, head = self._handback, self._head
        if error.elsewhere and handback is not None and head is not None:
            path = MODEL_INFER if self._once else MODEL_STREAM_INFER
            metadata = tuple(self._metadata.items())
            self._execution = None
            self._relay = handback.relay(
                path, head, error, metadata, self._deadline, self, self._trace
            )
            if self._relay is not None:
                return
        self._end(error)

    def _stop(self) -> None:
        if self._execution is not None:
            self._execution.cancel()
        if self._relay is not None:
            self._relay.cancel()

    def _end(self, error: AnyServeError | None) -> None:
        if not self._over:
            self._close()
            self.finish(error)

    def _close(self) -> None:
        """It ends now, and does so once."""
        self._over = True
