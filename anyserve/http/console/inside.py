"""What the console sees of whoever serves, and may do there: values, and one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
from anyserve_actors import Node

from anyserve.capability import Capability
from anyserve.errors import Cancelled

MOST_REPLICAS = 100
MOST_REQUESTS = 200


@attrs.frozen
class CapabilitySeen:
    """One capability of one replica."""

    name: str
    about: str
    """Its attributes and its version, as text."""
    state: str
    reason: str = ""
    """Why it is not ready."""
    running: int = 0
    waiting: int = 0
    slots: int = 0
    """Requests that may run at once."""
    tokens_per_second: float = 0.0


def about(capability: Capability) -> str:
    """See `CapabilitySeen`."""
    return str(capability).removeprefix(capability.name)


@attrs.frozen
class ReplicaSeen:
    """One replica."""

    id: str
    address: str
    state: str
    capabilities: Sequence[CapabilitySeen]
    silent: float = 0.0
    """Seconds since it was heard of."""


@attrs.frozen
class RequestSeen:
    """One request in flight."""

    id: str
    """The client's own for it; often empty."""
    capability: str
    state: str
    """`queued` or `running`."""
    place: str
    """The worker or replica that has it; empty while none has."""
    age: float
    """Seconds since it came."""
    remaining: float
    """Seconds to its deadline; infinite without one."""


class Abortable(Protocol):
    """A request in flight; equal to no other."""

    def abort(self, error: Cancelled) -> None:
        """End it; its client hears `error`. Nothing happens where it has ended."""
        ...


class Inside(Protocol):
    """Whoever serves, from inside. Called in Trio's thread; nothing here waits."""

    @property
    def kind(self) -> str:
        """`replica` or `scheduler`."""
        ...

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def address(self) -> str:
        """Where it serves gRPC."""
        ...

    @property
    def draining(self) -> bool:
        """Whether it takes no more requests."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that have come and not ended."""
        ...

    def replicas(self, now: float) -> tuple[Sequence[ReplicaSeen], int]:
        """Those of the fleet at a time, `MOST_REPLICAS` at most, and how many there are."""
        ...

    def requests(self, now: float) -> Mapping[Abortable, RequestSeen]:
        """Those in flight at a time, the oldest `MOST_REQUESTS`, the oldest first."""
        ...

    def tree(self, now: float) -> Node:
        """The actors at a time."""
        ...
