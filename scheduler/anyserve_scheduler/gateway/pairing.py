"""The prefill half of a request that a pair serves: a call whose answers nobody reads."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from anyserve_protos.response_head import encode_response_head

from anyserve.capability import Capability
from anyserve.errors import AnyServeError
from anyserve.pairs import DISAGGREGATION, HOST, MODEL, PORT, ROOMS, Rendezvous, is_half
from anyserve.replica.handback import MODEL_STREAM_INFER
from anyserve.stream_errors import is_error, unwrapped
from anyserve.transport.rpc import Metadata
from anyserve_scheduler.fleet import Fleet
from anyserve_scheduler.gateway.incoming import Incoming
from anyserve_scheduler.gateway.incoming import Metadata as Sending
from anyserve_scheduler.gateway.sending import ReplicaCall
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import Decision


class PrefillHalf:
    """A call to the prefill half. It ends once: by `on_ended`, or by `cancel`."""

    def __init__(
        self,
        ways: Ways,
        request: Incoming,
        decision: Decision,
        on_ended: Callable[[AnyServeError | None, Metadata], None],
    ) -> None:
        """on_ended: hears how it has ended, with an error or served, and with what trailers."""
        self.replica = decision.replica
        self._decision = decision
        self._is_stream = request.path == MODEL_STREAM_INFER
        self._on_ended = on_ended
        self._call = ReplicaCall(ways, request, decision, self)
        self._failure: AnyServeError | None = None

    def start(self, message: Sequence[bytes], trace: Sending) -> None:
        """Send it; message: with where the halves meet. trace: where the call is in a trace."""
        self._call.start(message, trace, half_need(self._decision))

    def cancel(self) -> None:
        """Its text is over, or given up."""
        self._call.cancel()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Answers`."""
        if self._is_stream and is_error(messages[-1]):
            failure = unwrapped(messages[-1])
            assert isinstance(failure, AnyServeError)
            self._failure = failure

    def on_end(self, error: AnyServeError | None, metadata: Metadata) -> None:
        """See `Answers`."""
        self._on_ended(error or self._failure, metadata)


def can_meet(prefill: Decision) -> bool:
    """Whether a prefill half says where decode halves find it."""
    attributes = prefill.capability.attributes
    return isinstance(attributes.get(HOST), str) and isinstance(attributes.get(PORT), int)


def rendezvous(prefill: Decision) -> bytes:
    """Parameters for both halves of a request, to go behind its own bytes: a room of its own."""
    attributes = prefill.capability.attributes
    room = secrets.randbelow(ROOMS)
    where = Rendezvous(str(attributes[HOST]), int(attributes[PORT]), room)
    return encode_response_head("", "", "", where.parameters, ())


def half_need(decision: Decision) -> Capability:
    """What a half is asked for, so that its replica has none but that offer take it."""
    offered = decision.capability
    known = {name: offered.attributes[name] for name in (DISAGGREGATION, MODEL)}
    return Capability(offered.name, known, offered.version)


def needs_partner(fleet: Fleet, replica: str, need: Capability) -> bool:
    """Whether a replica that hands a request over may serve it after all, with another half."""
    view = fleet.replicas.get(replica)
    return view is not None and any(
        is_half(offer.capability) and offer.capability.satisfies(need)
        for offer in view.offers.values()
    )
