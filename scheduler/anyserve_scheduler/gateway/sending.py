"""One call to a replica: what goes along with the request, and how it begins."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from multidict import MultiDict

from anyserve.capability import Capability
from anyserve.errors import Unavailable
from anyserve.needs import to_bytes
from anyserve.replica.handback import DELEGATIONS, LINK_TOKEN, NEED
from anyserve.transport.outgoing import Answers, Caller, Ongoing
from anyserve.transport.wire import NotTaken
from anyserve_scheduler.fleet import ReplicaView
from anyserve_scheduler.gateway.incoming import Incoming, Metadata
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import Decision


@attrs.define(eq=False)
class ReplicaCall:
    """A call that begins at once, or after a turn of the loop where there is no channel yet.

    It ends by `on_end` of its answers, with `NotTaken` where the replica is gone, or by `cancel`.
    """

    _ways: Ways
    _request: Incoming
    _decision: Decision
    """Where it goes; the link of that replica is up."""
    _answers: Answers
    _call: Ongoing | None = None
    _held: bool = False
    _cancelled: bool = False

    @property
    def begun(self) -> bool:
        """Whether the replica may have heard of it."""
        return self._call is not None

    def start(self, message: Sequence[bytes], trace: Metadata, need: Capability | None) -> None:
        """Send the request; `on_end` comes later.

        trace: where the call is in a trace. need: where the request does not say it itself.
        """
        ways = self._ways
        metadata = self._metadata(trace, need)
        view = ways.registry.fleet().replicas[self._decision.replica]
        channel = ways.channels.get(view)
        if channel is not None:
            self._begin(channel, message, metadata)
        else:
            ways.nursery.start_soon(self._open, view, message, metadata)

    def cancel(self) -> None:
        """See `Ongoing`."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def hold(self) -> None:
        """See `Ongoing`."""
        self._held = True
        if self._call is not None:
            self._call.hold()

    def resume(self) -> None:
        """See `Ongoing`."""
        self._held = False
        if self._call is not None:
            self._call.resume()

    def _metadata(self, trace: Metadata, need: Capability | None) -> Metadata:
        request, link = self._request, self._ways.link_of(self._decision)
        assert link is not None
        return (
            *request.metadata,
            *trace,
            (LINK_TOKEN, link.token),
            (DELEGATIONS, str(request.permit.delegations)),
            *(() if need is None else ((NEED, to_bytes(need)),)),
        )

    def _begin(self, channel: Caller, message: Sequence[bytes], metadata: Metadata) -> None:
        path, deadline = self._request.path, self._request.deadline
        self._call = channel.call(
            path, message, self._answers, deadline=deadline, metadata=metadata
        )
        if self._held:
            self._call.hold()

    async def _open(self, view: ReplicaView, message: Sequence[bytes], metadata: Metadata) -> None:
        try:
            channel = await self._ways.channels.open(view)
        except Unavailable as error:
            if not self._cancelled:
                self._answers.on_end(NotTaken(error.message), MultiDict())
            return
        if not self._cancelled:
            self._begin(channel, message, metadata)
