"""The actor that exports spans: OTLP over HTTP, in batches, by a thread of OpenTelemetry's SDK."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

import attrs
import trio
from anyserve_actors import Actor, Context, Detail
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from anyserve import __version__, traces
from anyserve.traces import Trace

QUEUE = 8192
"""Spans that wait to be sent; the oldest of more are dropped."""
_EVERY_MS = 1000
_REQUEST_TIMEOUT = 5.0
"""Seconds that the collector has to answer."""
_FLUSH = 2.0
"""Seconds for what waits when the process stops."""
_KINDS = {"send": SpanKind.CLIENT, "relay": SpanKind.CLIENT, "hand": SpanKind.INTERNAL}
"""By the first word of a span's name; all others are what a client asked for."""


@attrs.define(eq=False)
class _Exported:
    """See `traces.Span`."""

    exporting: Exporting
    name: str
    trace: Trace
    args: dict[str, Detail]
    recorded: traces.Span | None
    began: int = attrs.field(factory=time.time_ns)
    """Nanoseconds since the epoch."""
    is_open: bool = True

    def mark(self, name: str) -> None:
        """See `traces.Span`."""
        self.args[name] = (time.time_ns() - self.began) // 1000
        if self.recorded is not None:
            self.recorded.mark(name)

    def close(self, *, error: str | None = None) -> None:
        """See `traces.Span`."""
        if not self.is_open:
            return
        self.is_open = False
        if self.recorded is not None:
            self.recorded.args.update(self.args)
            self.recorded.close(error=error)
        self.exporting.send(self, error)


class Exporting(Actor[None]):
    """Has the spans of requests exported while it runs."""

    def __init__(self, endpoint: str, service: str) -> None:
        """endpoint: of the collector's traces. service: the name that spans are of."""
        self._endpoint = endpoint
        self._resource = Resource(
            {
                "service.name": service,
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        self._spans = 0
        self._exporter = OTLPSpanExporter(endpoint, timeout=_REQUEST_TIMEOUT)
        self._batches: BatchSpanProcessor | None = None

    def details(self) -> Mapping[str, Detail]:
        return {"endpoint": self._endpoint, "spans": self._spans}

    async def run(self, context: Context[None]) -> None:
        """Export until stopped."""
        # It warns of each span that is dropped, and of each try that failed.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._batches = BatchSpanProcessor(
            self._exporter, max_queue_size=QUEUE, schedule_delay_millis=_EVERY_MS
        )
        traces.export(self)
        context.started()
        await trio.sleep_forever()

    async def aclose(self) -> None:
        """Send what waits, for `_FLUSH` seconds at most; the rest is lost."""
        traces.export(None)
        if self._batches is None:
            return
        with trio.move_on_after(_FLUSH) as patience:
            await trio.to_thread.run_sync(self._batches.shutdown, abandon_on_cancel=True)
        if patience.cancelled_caught:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # its threads end by that

    def begin(
        self, name: str, trace: Trace, args: dict[str, Detail], recorded: traces.Span | None
    ) -> traces.Span:
        """See `traces.Export`."""
        return _Exported(self, name, trace, args, recorded)

    def send(self, span: _Exported, error: str | None) -> None:
        """A span has ended."""
        trace = span.trace
        parent = _context(trace, trace.parent, is_remote=True) if trace.parent else None
        self._spans += 1
        assert self._batches is not None
        self._batches.on_end(
            ReadableSpan(
                span.name,
                _context(trace, trace.span, is_remote=False),
                parent,
                self._resource,
                {f"anyserve.{key}": each for key, each in span.args.items() if each is not None},
                kind=_KINDS.get(span.name.partition(" ")[0], SpanKind.SERVER),
                status=Status() if error is None else Status(StatusCode.ERROR, error),
                start_time=span.began,
                end_time=time.time_ns(),
            )
        )


def _context(trace: Trace, span: str, *, is_remote: bool) -> SpanContext:
    state = TraceState.from_header([trace.state]) if trace.state else None
    return SpanContext(int(trace.id, 16), int(span, 16), is_remote, TraceFlags(trace.flags), state)
