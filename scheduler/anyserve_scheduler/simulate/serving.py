"""How a simulated replica answers: once or by a stream, itself or by what it relays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import AnyServeError, Internal
from anyserve.replica.exchange import Reply
from anyserve.replica.handback import MODEL_STREAM_INFER, Handback
from anyserve.transport.rpc import Metadata
from anyserve_scheduler.simulate.network import Call


class Unary:
    """The consumer of a request that is answered once."""

    def __init__(self, call: Call, failed: Callable[[AnyServeError], None]) -> None:
        self._call = call
        self._failed = failed
        self._reply: Reply | None = None

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        self._reply = reply

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if error is not None:
            self._failed(error)
        elif self._reply is None:
            self._failed(Internal("no answer"))
        else:
            self._call.answer(self._reply.pieces, self._reply.release)


class Stream:
    """The consumer of a request that is answered by a stream."""

    def __init__(self, call: Call, failed: Callable[[AnyServeError], None]) -> None:
        self._call = call
        self._failed = failed

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        self._call.say([b"".join(reply.pieces)])
        reply.release()

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if error is not None:
            self._failed(error)
        else:
            self._call.end()


def hand_stream_back(
    handback: Handback, call: Call, head: InferRequestHead, error: AnyServeError
) -> None:
    """What `hand_back` does, for a request that is answered by a stream."""
    if handback.trusts(call.metadata):
        call.fail(error, handback.trailers(error, head, call.metadata))
        return
    relay = handback.relay(
        MODEL_STREAM_INFER, head, error, call.metadata, call.deadline, _Relayed(call)
    )
    if relay is None:
        call.fail(error)
    else:
        call.on_gone = relay.cancel


@attrs.define(eq=False)
class _Relayed:
    """The answers to a call that is served elsewhere."""

    _call: Call

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        self._call.say(messages)

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        if error is not None:
            self._call.fail(error)
        else:
            self._call.end()
