"""grpclib's HTTP/2 connection with streams for Trio tasks, and without its traps.

grpclib's connection (`grpclib.protocol`, h2 beneath it) reads and writes the socket in asyncio
callbacks, which run in Trio's thread. What is overridden here and in `grpclib_stream` is not
public API: `pyproject.toml` holds grpclib below the next minor version, and the tests of this
folder fail if a hook is no longer called.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from anyserve_actors.asyncio_bridge import Bridge, open_bridge
from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler, Connection, EventsProcessor, H2Protocol
from grpclib.utils import Wrapper
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame

from anyserve.transport import sockets
from anyserve.transport.flood import FloodGuard
from anyserve.transport.grpclib_stream import Gate, H2Wire
from anyserve.transport.rpc import MIB, Limits
from anyserve.transport.wire import error_of_reset

_CONNECTION_WINDOW = 16 * MIB
"""Four stalled calls hold a connection's other calls up; more makes the slowest calls slower."""
_STREAM_WINDOW = 4 * MIB
_MAX_FRAME = MIB
_WRITE_BUFFER = MIB
"""Bytes that may wait for the socket before calls wait."""
_MAX_WRITE_BUFFER = 4 * MIB
"""More than calls alone can make wait: the peer asks for answers and does not read them."""
_FEED = 64 * 1024
"""Bytes parsed at once; small enough that a flood is seen before it has cost much."""
_GREETING = 20.0
"""Seconds for a client to say that it speaks HTTP/2."""
_LINGER = 5.0
"""Seconds for a peer to read what is left when its connection closes."""
_FLOOD = 1000.0
"""Control frames a second, weighted."""
_WEIGHTS = {
    events.PingReceived: 1.0,
    events.PingAckReceived: 1.0,
    events.RemoteSettingsChanged: 1.0,
    events.SettingsAcknowledged: 1.0,
    events.PriorityUpdated: 1.0,
    events.StreamReset: 1.0,
    events.UnknownFrameReceived: 1.0,
    events.WindowUpdated: 0.1,
}

_CONFIGURATION = Configuration(
    http2_connection_window_size=_CONNECTION_WINDOW, http2_stream_window_size=_STREAM_WINDOW
)

_log = logging.getLogger("anyserve.transport")


class _Data(DataFrame):
    """A DATA frame that is not spelt out for h2's log, which drops the text.

    Of large tensors that was a fifth of the replica's time.
    """

    def __repr__(self) -> str:
        return f"DATA of {len(self.data)} bytes"


class _Http2(H2Connection):
    """h2's connection, except that a GOAWAY does not end the streams that are open.

    h2 takes it for the connection's end; by RFC 9113, 6.8, what is in flight goes on.
    """

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self._frame_dispatch_table[_Data] = self._receive_data_frame

    def _receive_frame(self, frame: Frame) -> list[events.Event]:
        if type(frame) is DataFrame:
            frame.__class__ = _Data
        return super()._receive_frame(frame)

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Any], list[events.Event]]:
        event = events.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class TrioConnection(Connection):
    """grpclib's connection state, with gates for Trio and streams of ours."""

    write_ready: Gate
    stream_close_waiter: Gate

    def __init__(
        self,
        h2: H2Connection,
        transport: asyncio.Transport,
        peer: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(h2, transport, config=_CONFIGURATION)
        self.h2 = h2
        self._loop = loop
        self.peer = peer
        self.write_ready = Gate()
        self.write_ready.set()
        self.stream_close_waiter = Gate()

    def create_stream(  # type: ignore[override]
        self, *, stream_id: int | None = None, wrapper: Wrapper | None = None
    ) -> H2Wire:
        assert stream_id is not None
        return H2Wire(self, stream_id)

    def flush(self) -> None:
        """Give what h2 has written to the socket, or to its buffer."""
        data = self.h2.data_to_send()
        if data and not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close the socket once the peer has read what is left, at most 5 seconds from now."""
        transport = None if self.is_closing() else self._transport
        super().close()
        # Whoever waits here finds out by its stream.
        self.write_ready.set()
        self.stream_close_waiter.set()
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(_LINGER, transport.abort)

    def buffered(self) -> int:
        """Bytes that wait for the socket."""
        return 0 if self.is_closing() else self._transport.get_write_buffer_size()

    def go_away(self, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Tell the peer that its newer streams will not be served, and go on with the others.

        The frame goes around h2, which would let nothing be sent after it.
        """
        if not self.is_closing():
            self.flush()
            frame = GoAwayFrame(0, last_stream_id=self.h2.highest_inbound_stream_id)
            frame.error_code = code
            self._transport.write(frame.serialize())


class _Events(EventsProcessor):
    """grpclib's event processor, without its traps."""

    connection: TrioConnection

    def __init__(
        self,
        handler: AbstractHandler,
        connection: TrioConnection,
        flood: FloodGuard,
        on_goaway: Callable[[int], None],
    ) -> None:
        super().__init__(handler, connection)
        self._flood = flood
        self._on_goaway = on_goaway

    def process(self, event: events.Event) -> None:
        weight = _WEIGHTS.get(type(event), 0.0)
        if isinstance(event, events.DataReceived) and not event.data:
            weight = 1.0
        if weight and self._flood.exceeded(weight, trio.current_time()):
            raise _Flood
        # grpclib raises for events that it has no use for, such as those of unknown frames.
        processor = getattr(self, "processors", {}).get(type(event))
        if processor is not None:
            processor(event)

    def process_remote_settings_changed(self, event: events.RemoteSettingsChanged) -> None:
        super().process_remote_settings_changed(event)
        self.connection.stream_close_waiter.set()

    def process_stream_reset(self, event: events.StreamReset) -> None:
        stream = self.streams.get(event.stream_id or 0)
        if stream is not None:
            # First the cancellation, so that a handler that waits for its client sees that.
            self.handler.cancel(stream)
            stream.fail(error_of_reset(int(event.error_code)))  # type: ignore[attr-defined]
        self.connection.streams_failed += 1

    def process_connection_terminated(self, event: events.ConnectionTerminated) -> None:
        if event.error_code:
            self.close(reason=f"the peer ended it with error {event.error_code}")
        else:
            self._on_goaway(event.last_stream_id or 0)


class _Flood(Exception):
    """The peer sends more control frames than any use has for them."""


class TrioProtocol(H2Protocol):
    """grpclib's asyncio protocol of one connection, on either side."""

    connection: TrioConnection

    def __init__(
        self,
        handler: AbstractHandler,
        loop: asyncio.AbstractEventLoop,
        *,
        client: bool,
        limits: Limits,
        on_made: Callable[[], None],
        on_goaway: Callable[[int], None] = lambda last: None,
    ) -> None:
        super().__init__(
            handler,
            _CONFIGURATION,
            H2Configuration(
                client_side=client,
                # Any byte can be read, so that no header makes the parser raise.
                header_encoding="latin-1",
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            ),
        )
        self._loop = loop
        self._limits = limits
        self._on_made = on_made
        self._on_goaway = on_goaway
        self._transport: asyncio.Transport | None = None
        self.closed = Gate()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection with settings for large messages."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        with suppress(OSError):
            # A peer that has gone again already; reading will tell.
            # asyncio and grpclib set TCP_NODELAY by sock.proto, which is 0 on most sockets.
            sockets.prepare(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        h2 = _Http2(config=self.h2_config)
        h2.initiate_connection()
        h2.update_settings(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: _MAX_FRAME,
            }
        )
        h2.increment_flow_control_window(_CONNECTION_WINDOW - h2.inbound_flow_control_window)
        peer = sockets.peer_name(transport.get_extra_info("socket"))
        self.connection = TrioConnection(h2, transport, peer, self._loop)
        self.connection.flush()
        # A server may be flooded by anybody; a client has chosen its server.
        flood = FloodGuard(per_second=math.inf if self.h2_config.client_side else _FLOOD)
        self.processor = _Events(self.handler, self.connection, flood, self._on_goaway)
        self._greeting = self._loop.call_later(_GREETING, transport.abort)
        self._on_made()

    def data_received(self, data: bytes) -> None:
        """Parse what came; whatever is wrong with it ends this connection and nothing else."""
        try:
            for start in range(0, len(data), _FEED):
                received = self.connection.feed(data[start : start + _FEED])
                self.connection.flush()
                if received:
                    self._greeting.cancel()
                for event in received:
                    self.processor.process(event)
                self.connection.flush()
                if self.connection.buffered() > _MAX_WRITE_BUFFER:
                    raise _Flood
        except _Flood:
            _log.warning("closing the connection of %s: flood", self.connection.peer)
            self.connection.go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            self.processor.close("it floods")
        except ProtocolError as error:
            _log.debug("protocol error of %s: %s", self.connection.peer, error)
            self.connection.flush()
            self.processor.close(f"protocol error: {error}")
        except Exception:
            # An exception that left a protocol's callback would go to the loop, unowned.
            _log.exception("cannot read what %s sent", self.connection.peer)
            self.processor.close("internal error")

    async def shut(self, reason: str, grace: float) -> None:
        """Close the connection and wait until it is, at most `grace` seconds and a turn.

        The peer has that long to read what is left. Not to be cancelled.
        """
        if self._transport is None:
            return
        self.processor.close(reason)
        with trio.move_on_after(grace):
            await self.closed.wait()
        self._transport.abort()
        await self.closed.wait()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The socket is closed."""
        self._greeting.cancel()
        self.processor.close("connection closed" if exc is None else str(exc))
        self.closed.set()


@asynccontextmanager
async def use_bridge(bridge: Bridge | None) -> AsyncIterator[Bridge]:
    """The bridge given, or one for this block."""
    if bridge is not None:
        yield bridge
        return
    async with open_bridge() as own:
        yield own
