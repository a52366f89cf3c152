"""What goes to a replica along with a request."""

from __future__ import annotations

from anyserve.capability import Capability
from anyserve.needs import to_bytes
from anyserve.replica.handback import DELEGATIONS, LINK_TOKEN, NEED
from anyserve_scheduler.gateway.incoming import Incoming, Metadata
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import Decision


def metadata_of(
    ways: Ways, request: Incoming, decision: Decision, trace: Metadata, need: Capability | None
) -> Metadata:
    """The metadata of a call to the replica of `decision`, whose link is up.

    trace: where the call is in a trace. need: where the request does not say it itself.
    """
    link = ways.link_of(decision)
    assert link is not None
    return (
        *request.metadata,
        *trace,
        (LINK_TOKEN, link.token),
        (DELEGATIONS, str(request.permit.delegations)),
        *(() if need is None else ((NEED, to_bytes(need)),)),
    )
