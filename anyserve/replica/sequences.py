"""Sequences: which worker holds the state of which `sequence_id`, and for how long."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Protocol

import attrs

from anyserve.capability import Attribute
from anyserve.errors import InvalidArgument, ResourceExhausted, Unavailable
from anyserve.messages import Sequence
from anyserve.replica.pool import Seat

MAX_SEQUENCES = 65_536
"""Sequences open at once in one capability."""


def sequence_of(parameters: Mapping[str, Attribute]) -> Sequence:
    """Where a request stands in its sequence, by Triton's request parameters.

    Raises `InvalidArgument` when `sequence_id` is missing, zero, empty or of another type.
    """
    identity = parameters.get("sequence_id", 0)
    if isinstance(identity, bool) or not isinstance(identity, int | str) or not identity:
        raise InvalidArgument(
            "parameter 'sequence_id': a sequence model needs a non-zero integer or a string"
        )
    return Sequence(
        id=identity,
        start=parameters.get("sequence_start") is True,
        end=parameters.get("sequence_end") is True,
    )


class InTurn(Protocol):
    """A request in a sequence."""

    def on_turn(self) -> None:
        """The requests before it have ended."""
        ...


@attrs.define(eq=False)
class OpenSequence:
    """A sequence that has started and not ended."""

    used: float
    """When a request of it was last seen, on Trio's clock."""
    seat: Seat | None = None
    """The worker that holds it, once its first request has one."""
    _requests: deque[InTurn] = attrs.field(factory=deque)
    """Its requests run one at a time, in the order they came; the first has its turn."""
    _giving: bool = False
    """Whether turns are being given: many may fail, one after the other."""

    @property
    def idle(self) -> bool:
        """Whether it has no request in progress or waiting for its turn."""
        return not self._requests

    def take_turn(self, request: InTurn) -> bool:
        """Whether it is the request's turn now; else `on_turn` says when it is."""
        self._requests.append(request)
        return self._requests[0] is request and not self._giving

    def give_turn(self, request: InTurn) -> None:
        """The request has ended, or waits no more."""
        had_turn = self._requests[0] is request
        self._requests.remove(request)
        if not had_turn or self._giving:
            return
        self._giving = True
        try:
            while self._requests:
                first = self._requests[0]
                first.on_turn()
                if self._requests and self._requests[0] is first:
                    return
        finally:
            self._giving = False


class Sequences:
    """The open sequences of one capability, the longest idle first."""

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._open: OrderedDict[int | str, OpenSequence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, sequence: Sequence, now: float) -> OpenSequence:
        """The open sequence that a request belongs to, begun by it where it says so.

        Raises `InvalidArgument` when it was never begun, has ended or was idle for too long,
        `Unavailable` when its worker is gone, `ResourceExhausted` when too many are open.
        """
        self._expire(now)
        found = self._open.get(sequence.id)
        if sequence.start and (found is None or found.seat is None or found.seat.gone):
            if len(self._open) >= MAX_SEQUENCES:
                raise ResourceExhausted(f"{MAX_SEQUENCES} sequences are open already")
            found = found if found is not None and found.seat is None else OpenSequence(now)
            self._open[sequence.id] = found
        if found is None:
            raise InvalidArgument(
                f"sequence {sequence.id!r} is not open: its first request must set"
                f" 'sequence_start', and one that is idle for {self._idle:g} s is over"
            )
        if found.seat is not None and found.seat.gone:
            del self._open[sequence.id]
            raise Unavailable(f"the worker that held sequence {sequence.id!r} is gone")
        found.used = now
        self._open.move_to_end(sequence.id)
        return found

    def leave(self, sequence: Sequence, found: OpenSequence, request: InTurn, now: float) -> None:
        """A request of the sequence has ended, and the sequence too where it says so."""
        found.used = now
        if (sequence.end or found.seat is None) and self._open.get(sequence.id) is found:
            del self._open[sequence.id]
        found.give_turn(request)

    def _expire(self, now: float) -> None:
        for identity, candidate in list(self._open.items()):
            if candidate.used + self._idle > now:
                return
            if candidate.idle:
                del self._open[identity]
