"""`anyserve.v1.Admin`: the live actor tree and traces, for those who can reach its Unix socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import attrs
import trio
from anyserve_actors import Node, tracing
from anyserve_actors.recording import Recording
from anyserve_protos.anyserve import v1 as pb
from grpclib.const import Cardinality, Handler

from anyserve import __version__
from anyserve.admin.socket_path import prepare_directory, socket_path
from anyserve.errors import FailedPrecondition, InvalidArgument
from anyserve.transport.address import UnixAddress
from anyserve.transport.listener import Listener
from anyserve.transport.rpc import Limits, ServerStream
from anyserve.transport.wires import Serve

MAX_TRACE_SECONDS = 300.0
_CHUNK = 1 << 20


@attrs.frozen
class About:
    """Who serves, as it is now."""

    name: str
    """Of the process in a trace."""
    address: str
    """Where it serves inference."""
    capabilities: Sequence[str] = ()
    """What is ready."""
    replica_id: str = ""
    """A replica's own in its fleet."""
    fleet: Mapping[str, str] = attrs.field(factory=dict)
    """Addresses of a scheduler's replicas, by id."""


class Child(Protocol):
    """A process that is recorded together with the one that started it."""

    def start_tracing(self) -> None:
        """Have it record, where it runs."""
        ...

    def stop_tracing(self) -> None:
        """Have it record no more."""
        ...

    async def recording(self) -> bytes | None:
        """What it has recorded; None where it has nothing to give within some seconds."""
        ...


class AdminService:
    """Looks into a running process; changes nothing but whether it is traced."""

    def __init__(
        self,
        *,
        about: Callable[[], About],
        snapshot: Callable[[float], Node],
        children: Callable[[], Iterable[Child]] = tuple,
    ) -> None:
        """snapshot: the actor tree at a time. children: the processes that it has now."""
        self._about = about
        self._snapshot = snapshot
        self._children = children
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
        about = self._about()
        await stream.send_message(
            pb.StatusReply(
                version=__version__,
                pid=os.getpid(),
                address=about.address,
                uptime_seconds=trio.current_time() - self._started,
                capabilities=list(about.capabilities),
                replica_id=about.replica_id,
                fleet=dict(about.fleet),
            )
        )

    async def trace(self, stream: ServerStream) -> None:
        """Record the process and its children for a time, then send each recording in pieces."""
        request = await stream.recv_message()
        if not 0 < request.seconds <= MAX_TRACE_SECONDS:
            raise InvalidArgument(
                f"seconds is {request.seconds:g}; a trace takes up to {MAX_TRACE_SECONDS:g}"
            )
        for number, recording in enumerate(await self._record(request.seconds)):
            for at in range(0, len(recording), _CHUNK):
                piece = recording[at : at + _CHUNK]
                await stream.send_message(pb.TraceChunk(process=number, recording=piece))

    async def _record(self, seconds: float) -> list[bytes]:
        """The recordings, that of the process itself first."""
        name = self._about().name
        if tracing.active():
            raise FailedPrecondition("it is being traced already")
        tracing.start(name)
        children = list(self._children())
        try:
            for child in children:
                child.start_tracing()
            await trio.sleep(seconds)
        finally:
            recordings = [tracing.stop()]
            for child in children:
                child.stop_tracing()
        for child in children:
            recorded = await child.recording()
            if recorded is not None:
                recording = Recording.from_bytes(recorded)
                process = f"{recording.process} of {name}"
                recordings.append(attrs.evolve(recording, process=process))
        return [recording.to_bytes() for recording in recordings]


def admin_listener(serve: Serve, service: AdminService, port: int) -> Listener:
    """Serves it for whoever serves on `port`.

    Raises `PermissionError` where the folder of the socket is not the user's alone.
    """
    prepare_directory()
    path = socket_path(port)
    path.unlink(missing_ok=True)  # the port is ours, so whoever left it there is dead
    return Listener(serve, [service], UnixAddress(str(path)), Limits())


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
