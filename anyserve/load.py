"""What one offer's requests do at one moment, as a replica measures it and a scheduler is told."""

from __future__ import annotations

import attrs
from anyserve_protos.anyserve import v1 as pb


@attrs.frozen
class Load:
    """What the requests of one capability of one replica do."""

    running: int
    queued: int
    """Both with what others have the server do that a worker asks."""
    slots: int
    """Requests that may run at once, in all workers."""
    expected_wait: float
    """Seconds until a new request would start; 0 where a slot is free."""
    tokens_per_second: float = 0.0
    """Given lately, in responses where nobody counts tokens; 0 where each request has one."""


def to_message(load: Load) -> pb.Load:
    """`load` as it travels."""
    return pb.Load(
        running=load.running,
        queued=load.queued,
        slots=load.slots,
        expected_wait_seconds=load.expected_wait,
        tokens_per_second=load.tokens_per_second,
    )


def from_message(message: pb.Load | None) -> Load:
    """The load that travelled; that of an idle offer without slots where there is none."""
    if message is None:
        return Load(0, 0, 0, 0.0)
    return Load(
        running=message.running,
        queued=message.queued,
        slots=message.slots,
        expected_wait=message.expected_wait_seconds,
        tokens_per_second=message.tokens_per_second,
    )
