"""Requests that have exactly one response."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import AnyServeError, Internal, Unimplemented
from anyserve.replica.exchange import Reply
from anyserve.replica.handback import MODEL_INFER, Handback
from anyserve.replica.inference import Accepted, Inference
from anyserve.traces import Trace
from anyserve.transport.callback import UnaryCall
from anyserve.transport.rpc import Metadata

Done = Callable[[Reply | AnyServeError], None]
"""Takes the one response, whose buffers it releases, or what the request ended with instead."""


class UnaryInference:
    """One such request, from its start to its response."""

    def __init__(self, inference: Inference, accepted: Accepted, method: str, done: Done) -> None:
        self._execution = inference.execution(accepted, self, method)
        self._done = done
        self._reply: Reply | None = None

    def start(self) -> None:
        """Begin; `done` is called later. Raises what `Execution.start` does."""
        self._execution.start()

    def cancel(self) -> None:
        """Nobody waits for the response any more."""
        self._execution.cancel()
        self._drop()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        if self._reply is None:
            self._reply = reply
            return
        reply.release()
        self._drop()
        error = Unimplemented(
            f"{self._execution.offer.name!r} answers more than once: call it with ModelStreamInfer"
        )
        self._execution.cancel(error)
        self._done(error)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if error is not None:
            self._drop()
            self._done(error)
        elif self._reply is not None:
            reply, self._reply = self._reply, None
            self._done(reply)
        else:
            name = self._execution.offer.name
            self._done(Unimplemented(f"{name!r} gave no answer: call it with ModelStreamInfer"))

    def _drop(self) -> None:
        if self._reply is not None:
            self._reply.release()
            self._reply = None


def hand_back(
    handback: Handback,
    call: UnaryCall,
    head: InferRequestHead,
    error: AnyServeError,
    trace: Trace | None = None,
) -> None:
    """What becomes of a call that can't be served here: the scheduler has it served elsewhere."""
    if handback.trusts(call.metadata):
        call.fail(error, handback.trailers(error, head, call.metadata, trace))
        return
    relay = handback.relay(
        MODEL_INFER, head, error, call.metadata, call.deadline, _RelayedAnswer(call), trace
    )
    if relay is None:
        call.fail(error)
    else:
        call.on_gone = relay.cancel


class _RelayedAnswer:
    """The answer to a call that was served elsewhere."""

    def __init__(self, call: UnaryCall) -> None:
        self._call = call
        self._message: bytes | None = None

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        self._message = messages[-1]

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        if error is not None:
            self._call.fail(error)
        elif self._message is None:
            self._call.fail(Internal("the scheduler gave no answer"))
        else:
            self._call.answer((self._message,))
