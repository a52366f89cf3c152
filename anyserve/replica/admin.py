"""`anyserve.v1.Admin`: the live actor tree and traces, for those who can reach its Unix socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import trio
from anyserve_actors import Node, chrome_trace, tracing
from anyserve_actors.recording import Recording
from anyserve_protos.anyserve import v1 as pb
from grpclib.const import Cardinality, Handler

from anyserve import __version__
from anyserve.errors import FailedPrecondition, InvalidArgument
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.pool import State
from anyserve.replica.worker_link import WorkerLink
from anyserve.transport.rpc import ServerStream

MAX_TRACE_SECONDS = 300.0
_CHUNK = 1 << 20


class AdminService:
    """Looks into a running replica; changes nothing but whether it is traced."""

    def __init__(
        self,
        *,
        address: Callable[[], str],
        snapshot: Callable[[float], Node],
        links: Mapping[str, WorkerLink],
        dispatcher: Dispatcher,
    ) -> None:
        """address: where the replica serves. snapshot: the actor tree at a time."""
        self._address = address
        self._snapshot = snapshot
        self._links = links
        self._dispatcher = dispatcher
        self._started = trio.current_time()

    def __mapping__(self) -> Mapping[str, Handler]:
        """The methods, in the form of grpclib services."""
        unary, streaming = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return {
            "/anyserve.v1.Admin/Tree": Handler(self.tree, unary, pb.TreeRequest, pb.TreeReply),
            "/anyserve.v1.Admin/Status": Handler(
                self.status, unary, pb.StatusRequest, pb.StatusReply
            ),
            "/anyserve.v1.Admin/Trace": Handler(
                self.trace, streaming, pb.TraceRequest, pb.TraceChunk
            ),
        }

    async def tree(self, stream: ServerStream) -> None:
        """Every actor as it is now."""
        await stream.recv_message()
        await stream.send_message(pb.TreeReply(root=_node(self._snapshot(trio.current_time()))))

    async def status(self, stream: ServerStream) -> None:
        """Who this is and what it serves."""
        await stream.recv_message()
        ready = [p.offer for p in self._dispatcher.pools if p.state is State.READY]
        await stream.send_message(
            pb.StatusReply(
                version=__version__,
                pid=os.getpid(),
                address=self._address(),
                uptime_seconds=trio.current_time() - self._started,
                capabilities=[str(offer.capability) for offer in ready],
            )
        )

    async def trace(self, stream: ServerStream) -> None:
        """Record the replica and its workers for a time, then send the trace in pieces."""
        request = await stream.recv_message()
        if not 0 < request.seconds <= MAX_TRACE_SECONDS:
            raise InvalidArgument(
                f"seconds is {request.seconds:g}; a trace takes up to {MAX_TRACE_SECONDS:g}"
            )
        recordings = await self._record(request.seconds)
        data = await trio.to_thread.run_sync(chrome_trace, recordings)
        for at in range(0, len(data), _CHUNK):
            await stream.send_message(pb.TraceChunk(json=data[at : at + _CHUNK]))

    async def _record(self, seconds: float) -> list[Recording]:
        if tracing.active():
            raise FailedPrecondition("the replica is being traced already")
        tracing.start("replica")
        links = list(self._links.values())
        try:
            for link in links:
                link.start_tracing()
            await trio.sleep(seconds)
        finally:
            recordings = [tracing.stop()]
            for link in links:
                link.stop_tracing()
        for link in links:
            recorded = await link.recording()
            if recorded is not None:
                recordings.append(Recording.from_bytes(recorded))
        return recordings


def _node(node: Node) -> pb.Node:
    return pb.Node(
        name=node.name,
        kind=node.kind,
        state=node.state.value,
        age_seconds=node.age,
        mailbox_depth=node.mailbox_depth,
        mailbox_capacity=node.mailbox_capacity,
        restarts=node.restarts,
        last_error=node.last_error or "",
        details={k: str(v) for k, v in node.details.items() if v is not None},
        children=[_node(child) for child in node.children],
    )
