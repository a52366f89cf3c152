"""W3C trace context: where requests are in traces, as `traceparent` and `tracestate` say it.

A request that comes without one is given a trace only while somebody records. Whatever takes part
in it is a parent of its own to what comes after.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

import attrs
from anyserve_actors import tracing
from anyserve_actors.tree import Detail

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_FORM = re.compile(
    "([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
"""Of version 00, and of later ones, which may only add to the end."""
_NOTHING = nullcontext()
_SAMPLED, _RANDOM = 1, 2
"""Flags: that the sender may have recorded it, and that the trace's id is random."""

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


@attrs.frozen
class Trace:
    """Where a request is in a trace."""

    id: str
    """32 hex digits."""
    span: str
    """What is done for the request here, 16 hex digits: the parent of all that comes of it."""
    parent: str = ""
    """The span of whoever sent the request; empty where that is not known."""
    flags: int = 0
    state: str = ""
    """What others have written into `tracestate`, which goes along as it is."""

    @property
    def traceparent(self) -> str:
        """The header for what comes of the request here."""
        return f"00-{self.id}-{self.span}-{self.flags:02x}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The metadata that passes the trace on."""
        parent = (TRACEPARENT, self.traceparent)
        return (parent, (TRACESTATE, self.state)) if self.state else (parent,)

    def child(self) -> Trace:
        """For something that is done for the request within this."""
        return Trace(self.id, _new_span(), self.span, self.flags, self.state)

    def onto(self, metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata with this trace in the place of what it said of one."""
        return (*without_trace(metadata), *self.headers)


class Span(Protocol):
    """Something that is done for a request, while it lasts."""

    args: dict[str, Detail]

    def mark(self, name: str) -> None:
        """Note that something happens now, as an arg: the microseconds since the span began."""
        ...

    def close(self, *, error: str | None = None) -> None:
        """It is done; error: what it failed with. Told again, nothing happens."""
        ...


class Export(Protocol):
    """Who takes the spans of requests beside the recorder."""

    def begin(
        self, name: str, trace: Trace, args: dict[str, Detail], recorded: Span | None
    ) -> Span:
        """A span has begun; `recorded` is to be told what its holder tells of it."""
        ...


_export: Export | None = None


def export(to: Export | None) -> None:
    """Give the spans of requests to `to` from now on; None: to nobody."""
    global _export
    _export = to


def _is_wanted() -> bool:
    """Whether anybody takes spans."""
    return _export is not None or tracing.active()


def at_door(metadata: Metadata) -> Trace | None:
    """The trace of a request that has just come in; None where nobody has asked for one.

    What is malformed counts for nothing, with its `tracestate`: a new trace begins. So it does
    for every request while this process is recorded or exports spans.
    """
    given = [value for key, value in metadata if key == TRACEPARENT]
    if not given and not _is_wanted():
        return None
    trace = _parsed(given[0]) if len(given) == 1 else None
    if trace is None:
        flags = _RANDOM | (_SAMPLED if _is_wanted() else 0)
        return Trace(f"{random.getrandbits(128) or 1:032x}", _new_span(), flags=flags)
    states = [value for key, value in metadata if key == TRACESTATE and isinstance(value, str)]
    return attrs.evolve(trace, state=",".join(states)) if states else trace


def without_trace(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """The metadata without what it says of a trace."""
    return tuple([entry for entry in metadata if entry[0] not in (TRACEPARENT, TRACESTATE)])


def begin(name: str, trace: Trace | None, **args: Detail) -> Span | None:
    """Record what the trace's span stands for, and export it where the trace is sampled.

    None without a trace, or while nobody does either.
    """
    if trace is None:
        return None
    span = _begun(tracing.begin(name, trace.id, id=trace.span, parent=trace.parent), args)
    if _export is None or not trace.flags & _SAMPLED:
        return span
    return _export.begin(name, trace, args, span)


def begin_part(name: str, trace: Trace | None, **args: Detail) -> tracing.OpenSpan | None:
    """The same of a part of that span."""
    if trace is None:
        return None
    return _begun(tracing.begin(name, trace.id, parent=trace.span), args)


def trace_id(traceparent: str) -> str:
    """The trace that a valid `traceparent` names."""
    return traceparent[3:35]


def handler_span(
    name: str, request_id: str, traceparent: str | None
) -> AbstractContextManager[None]:
    """Record what a handler does for a request, under the span that has sent it here.

    request_id: where it is in no trace, since it came before somebody recorded.
    """
    if not tracing.active():
        return _NOTHING
    if traceparent is None:
        return tracing.span(name, f"{request_id} in process {os.getpid()}")
    return tracing.span(name, trace_id(traceparent), parent=traceparent[36:52])


def _begun(span: tracing.OpenSpan | None, args: Mapping[str, Detail]) -> tracing.OpenSpan | None:
    if span is not None:
        span.args.update(args)
    return span


def _parsed(traceparent: str | bytes) -> Trace | None:
    """What a header says, for a span below the sender's; None where it is malformed."""
    match = _FORM.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if match is None:
        return None
    version, id, parent, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    return Trace(id, _new_span(), parent, int(flags, 16) & (_SAMPLED | _RANDOM))


def _new_span() -> str:
    return f"{random.getrandbits(64) or 1:016x}"
