"""What the page shows at one moment, as one server-sent event, made once a second for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import attrs
import msgspec
from anyserve_actors import Node

from anyserve import __version__
from anyserve.errors import Cancelled
from anyserve.http.backend import Backend
from anyserve.http.console.inside import Abortable, Inside, ReplicaSeen, RequestSeen
from anyserve.http.openai.models import targets

PROMPTED = "decode"
"""The capability that the prompt box asks, by its models' names."""


@attrs.frozen
class Row:
    """One request of the list."""

    number: int
    """What the page calls it by; never that of another one."""
    request: RequestSeen


@attrs.frozen
class Snapshot:
    """All that the page shows."""

    version: str
    kind: str
    name: str
    address: str
    draining: bool
    uptime: float
    in_flight: int
    replicas: Sequence[ReplicaSeen]
    replica_count: int
    """Of all, of which `replicas` may be a part."""
    requests: Sequence[Row]
    models: Sequence[str]
    """What a prompt may be sent to."""
    tree: Node


class Snapshots:
    """The last snapshot, and the requests in it."""

    def __init__(self, inside: Inside, backend: Backend, clock: Callable[[], float]) -> None:
        self._inside = inside
        self._backend = backend
        self._clock = clock
        self._began = clock()
        self._second = -1
        self._event = b""
        self._next = itertools.count(1)
        self._numbers: dict[Abortable, int] = {}

    @property
    def last(self) -> bool:
        """Whether whoever serves is stopping, and waits for nobody who looks."""
        return self._inside.draining

    def event(self) -> bytes:
        """The present one as an event; that of the same second where there is one."""
        now = self._clock()
        if math.floor(now) != self._second:
            self._second = math.floor(now)
            self._event = b"data: " + msgspec.json.encode(self._take(now)) + b"\n\n"
        return self._event

    def forget(self) -> None:
        """Nobody looks any more."""
        self._second, self._event = -1, b""
        self._numbers = {}

    def cancel(self, number: int, error: Cancelled) -> bool:
        """End the request of that number; False where it is no longer shown."""
        for request, known in self._numbers.items():
            if known == number:
                del self._numbers[request]
                request.abort(error)
                return True
        return False

    def _take(self, now: float) -> Snapshot:
        inside = self._inside
        replicas, count = inside.replicas(now)
        return Snapshot(
            version=__version__,
            kind=inside.kind,
            name=inside.name,
            address=inside.address,
            draining=inside.draining,
            uptime=now - self._began,
            in_flight=inside.in_flight,
            replicas=replicas,
            replica_count=count,
            requests=self._rows(now),
            models=self._models(),
            tree=inside.tree(now),
        )

    def _rows(self, now: float) -> list[Row]:
        before, self._numbers = self._numbers, {}
        rows = []
        for request, seen in self._inside.requests(now).items():
            number = before.get(request) or next(self._next)
            self._numbers[request] = number
            rows.append(Row(number, seen))
        return rows

    def _models(self) -> list[str]:
        found = targets(self._backend.offers())
        roots = {name: target.capability.partition(".")[0] for name, target in found.items()}
        return [name for name, root in roots.items() if root == PROMPTED]
