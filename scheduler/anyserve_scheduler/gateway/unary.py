"""ModelInfer through the front door: one request, one answer, and no task."""

from __future__ import annotations

from collections.abc import Sequence

from anyserve.errors import AnyServeError, Internal
from anyserve.replica.handback import MODEL_INFER
from anyserve.replica.inference import scan
from anyserve.transport.callback import UnaryCall
from anyserve.transport.rpc import Buffer
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import incoming
from anyserve_scheduler.gateway.ways import Ways


class ForwardedUnary:
    """One such call."""

    def __init__(self, ways: Ways, call: UnaryCall, body: bytes) -> None:
        """Send the request on; raises why that can't be."""
        self._call = call
        self._messages: Sequence[Buffer] = ()
        request = incoming(
            MODEL_INFER, body, scan(body), tuple(call.metadata), call.deadline, ways.links
        )
        forwarding = Forwarding(ways, request, self)
        call.on_gone = forwarding.cancel
        forwarding.start()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Client`."""
        self._messages = (*self._messages, *messages)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Client`."""
        if error is not None:
            self._call.fail(error)
        elif len(self._messages) != 1:
            self._call.fail(Internal(f"the replica gave {len(self._messages)} answers, not one"))
        else:
            self._call.answer(self._messages)
