"""What a traced process recorded, as a value that other processes can be sent."""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from anyserve_actors.tree import Detail

_LENGTH = struct.Struct("<I")
_FIELDS = 4
"""64-bit integers of a step."""


@attrs.frozen
class Step:
    """A task ran from one of its awaits to the next."""

    row: int
    """Index of the task's name in the recording's `rows`."""
    began: int
    """Nanoseconds of the machine's monotonic clock."""
    duration: int
    """Nanoseconds."""
    waited: int
    """Nanoseconds from when the task could run to when it ran."""


@attrs.frozen
class Span:
    """A part of a request's work that a program named."""

    name: str
    request_id: str
    """The same in every process that works on the request."""
    row: int
    """Where it began, as in `Step`."""
    began: int
    duration: int
    args: Mapping[str, Detail]
    id: str = ""
    """Its own among those of the request, where others name it as their parent."""
    parent: str = ""
    """The id of the span that this is a part of, in this process or in another."""


@attrs.frozen(eq=False)
class Recording:
    """One process's trace, times on the monotonic clock that a machine's processes share."""

    pid: int
    process: str
    """The process's name in the trace."""
    began: int
    ended: int
    rows: tuple[str, ...]
    """Names of the tasks, and of the threads outside Trio, that the events are of."""
    spans: tuple[Span, ...]
    dropped: int
    """Events that came when the buffer was full."""
    blocking: int
    """Nanoseconds from which on a step is said to block the event loop."""
    packed_steps: array[int]
    """The steps' four numbers, one step after another."""
    machine: str = ""
    """Whose monotonic clock it is: the same in all processes since a machine has started."""
    wall: int = 0
    """What the wall clock showed when the monotonic one was 0, in nanoseconds since 1970."""

    def steps(self) -> Iterator[Step]:
        """The steps in the order in which they ended."""
        numbers = iter(self.packed_steps)
        for row, began, duration, waited in zip(numbers, numbers, numbers, numbers, strict=True):
            yield Step(row, began, duration, waited)

    def to_bytes(self) -> bytes:
        """A JSON head and the steps as 64-bit little-endian integers, 32 bytes a step."""
        head = json.dumps(
            {
                "pid": self.pid,
                "process": self.process,
                "began": self.began,
                "ended": self.ended,
                "rows": self.rows,
                "spans": [attrs.astuple(span) for span in self.spans],
                "dropped": self.dropped,
                "blocking": self.blocking,
                "machine": self.machine,
                "wall": self.wall,
            },
            separators=(",", ":"),
        ).encode()
        return b"".join((_LENGTH.pack(len(head)), head, _little_endian(self.packed_steps)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Recording:
        """The inverse of `to_bytes`; raises `ValueError` where `data` is not a recording."""
        try:
            (length,) = _LENGTH.unpack_from(data)
            head: dict[str, Any] = json.loads(data[_LENGTH.size : _LENGTH.size + length])
            steps = array("q", data[_LENGTH.size + length :])
            recording = cls(
                pid=int(head["pid"]),
                process=str(head["process"]),
                began=int(head["began"]),
                ended=int(head["ended"]),
                rows=tuple(str(row) for row in head["rows"]),
                spans=tuple(_span(*fields) for fields in head["spans"]),
                dropped=int(head["dropped"]),
                blocking=int(head["blocking"]),
                packed_steps=array("q", _little_endian(steps)),
                machine=str(head["machine"]),
                wall=int(head["wall"]),
            )
        except (struct.error, LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a recording: {error}") from None
        if len(steps) % _FIELDS or not recording._rows_exist():
            raise ValueError("not a recording: its steps do not fit its rows")
        return recording

    def _rows_exist(self) -> bool:
        rows = range(len(self.rows))
        return all(row in rows for row in self.packed_steps[::_FIELDS]) and all(
            span.row in rows for span in self.spans
        )


def _span(
    name: Any, request: Any, row: Any, began: Any, duration: Any, args: Any, id: Any, parent: Any
) -> Span:
    """A span as it was sent; raises ValueError and TypeError for what is none."""
    return Span(
        str(name),
        str(request),
        int(row),
        int(began),
        int(duration),
        dict(args),
        str(id),
        str(parent),
    )


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        return numbers.tobytes()
    swapped = array("q", numbers)
    swapped.byteswap()
    return swapped.tobytes()
