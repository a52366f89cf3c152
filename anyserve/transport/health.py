"""`grpc.health.v1.Health`: Check and Watch, for the server and for each name that has a state."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio
from anyserve_protos.grpc.health import v1 as pb
from grpclib.const import Cardinality, Handler

from anyserve.errors import NotFound
from anyserve.transport.rpc import ServerStream

_Status = pb.HealthCheckResponseServingStatus


@attrs.define(eq=False)
class HealthState:
    """Who serves, by name; the empty name is the server as a whole."""

    ended: bool = attrs.field(init=False, default=False)
    """Nothing will change any more."""
    _serving: dict[str, bool] = attrs.field(init=False, factory=dict)
    _changed: trio.Event = attrs.field(init=False, factory=trio.Event)

    def set(self, name: str, serving: bool) -> None:
        """Say whether `name` serves; watchers hear of it when that is new."""
        if self._serving.get(name) is not serving:
            self._serving[name] = serving
            self._notify()

    def end(self) -> None:
        """Let watchers go, for a server that stops."""
        self.ended = True
        self._notify()

    def get(self, name: str) -> bool | None:
        """Whether `name` serves; None for a name that is unknown."""
        return self._serving.get(name)

    async def next_change(self) -> None:
        """Wait until something is new; the caller's scope bounds it."""
        await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


class HealthService:
    """Answers from a `HealthState`."""

    def __init__(self, state: HealthState) -> None:
        self._state = state

    def __mapping__(self) -> Mapping[str, Handler]:
        """The methods, in the form of grpclib services."""
        types = (pb.HealthCheckRequest, pb.HealthCheckResponse)
        return {
            "/grpc.health.v1.Health/Check": Handler(self.check, Cardinality.UNARY_UNARY, *types),
            "/grpc.health.v1.Health/Watch": Handler(self.watch, Cardinality.UNARY_STREAM, *types),
        }

    async def check(self, stream: ServerStream) -> None:
        """The state now; `NotFound` for an unknown name."""
        request: pb.HealthCheckRequest = await stream.recv_message()
        serving = self._state.get(request.service)
        if serving is None:
            raise NotFound(f"no service {request.service!r} here")
        await stream.send_message(pb.HealthCheckResponse(status=_status(serving)))

    async def watch(self, stream: ServerStream) -> None:
        """The state now and whenever it changes, until the client has enough or the server ends.

        An unknown name is SERVICE_UNKNOWN and may become known, as the protocol says.
        """
        request: pb.HealthCheckRequest = await stream.recv_message()
        sent: _Status | None = None
        while not self._state.ended:
            status = _status(self._state.get(request.service))
            if status != sent:
                await stream.send_message(pb.HealthCheckResponse(status=status))
                sent = status
            if _status(self._state.get(request.service)) == sent:
                await self._state.next_change()


def _status(serving: bool | None) -> _Status:
    if serving is None:
        return _Status.SERVICE_UNKNOWN
    return _Status.SERVING if serving else _Status.NOT_SERVING
