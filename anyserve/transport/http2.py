"""HTTP/2 framing and header compression without sockets: the one module that knows ngh2.

Bytes in, events out; frames in, bytes out. What its users have to know of ngh2: events come out of
`output` as well as of `feed`; a reset overtakes whatever is queued on its stream; what is queued
behind a closed window is bounded by nobody, so they queue no more than `room`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TypeAlias

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    PingAcknowledged,
    PingReceived,
    PriorityUpdateReceived,
    RequestReceived,
    ResponseReceived,
    SettingsAcknowledged,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2 import Event as Event
from ngh2 import StreamProtocolError as StreamGone

from anyserve.transport.headers import Headers
from anyserve.transport.rpc import MIB, Buffer

__all__ = [
    "ConnectionClosed",
    "DataReceived",
    "Event",
    "GoAwayReceived",
    "Http2",
    "Http2Error",
    "NoMoreStreams",
    "PingAcknowledged",
    "PingReceived",
    "PriorityUpdateReceived",
    "RawHeaders",
    "RequestReceived",
    "ResponseReceived",
    "SettingsAcknowledged",
    "SettingsReceived",
    "StreamClosed",
    "StreamGone",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "decode",
]

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]

CONNECTION_WINDOW = 16 * MIB
"""Four stalled calls hold a connection's other calls up."""
STREAM_WINDOW = 4 * MIB
_MAX_HEADERS = 64 * 1024
"""Bytes of one header list, counted as RFC 9113, 6.5.2 does."""
_RESETS = (1000, 1000)
"""Streams that a client may reset at once, and then each second."""
_ACKS_OF_SERVER, _ACKS_OF_CLIENT = 1_000, 100_000
"""PINGs and SETTINGS that may wait for their answers; clients have chosen their server."""
_REMEMBERED = 64
"""Header lists whose other form is kept; most calls of a client send the same."""

_ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW, _MAX_HEADER_LIST = 2, 3, 4, 6


class Http2Error(Exception):
    """The connection cannot go on, and there is nothing to be sent any more."""


class NoMoreStreams(Exception):
    """This connection takes no more calls."""


_Over = ngh2.ConnectionStateError
"""The peer has gone away, and the last stream has ended: there is nothing to say any more.

The events of what was read with that are yet to be handled.
"""


@lru_cache(_REMEMBERED)
def _encode(headers: Headers) -> RawHeaders:
    return tuple((name.encode(), value.encode()) for name, value in headers)


def decode(headers: RawHeaders) -> Headers:
    """Headers as text; any byte can be read."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


class Http2:
    """One end of a connection.

    The methods for a stream raise `StreamGone` where the peer or an error has ended it, which an
    event says as well.
    """

    def __init__(self, *, client: bool, max_streams: int) -> None:
        self._engine = ngh2.Connection(
            ngh2.Role.CLIENT if client else ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                max_outbound_ack=_ACKS_OF_CLIENT if client else _ACKS_OF_SERVER,
                stream_reset_rate_limit=_RESETS,
                max_inbound_header_list_size=_MAX_HEADERS,
            ),
        )
        settings = {_INITIAL_WINDOW: STREAM_WINDOW, _MAX_HEADER_LIST: _MAX_HEADERS}
        if client:
            settings[_ENABLE_PUSH] = 0
        else:
            settings[_MAX_CONCURRENT_STREAMS] = max_streams
        self._engine.initiate_connection(settings)
        self._engine.set_local_window_size(CONNECTION_WINDOW)
        self.held = 0
        """Bytes of DATA that events have brought and `consume` has not given back."""
        # What every call needs, without a frame of Python in between.
        self.events: Callable[[], list[Event]] = self._engine.events
        self.send_data: Callable[[int, Buffer], None] = self._engine.send_data
        self.end: Callable[[int], None] = self._engine.end_stream
        self.queued: Callable[[int], int] = self._engine.queued_body_size

    def feed(self, data: memoryview) -> list[Event]:
        """Read bytes of the peer; raises `Http2Error`."""
        try:
            self._engine.receive_data(data)
        except ngh2.NGH2Error as error:
            raise Http2Error(str(error)) from error
        return self._engine.events()

    def output(self) -> bytes:
        """What can be sent now; raises `Http2Error`."""
        try:
            return self._engine.data_to_send()
        except ngh2.NGH2Error as error:
            raise Http2Error(str(error)) from error

    @property
    def wants_output(self) -> bool:
        """Whether `output` has something."""
        return self._engine.want_write

    def request(self, headers: Headers) -> int:
        """Begin a call; its stream. Raises `NoMoreStreams`."""
        try:
            return self._engine.send_request(_encode(headers))
        except (ngh2.ConnectionClosingError, ngh2.NoAvailableStreamIDError) as error:
            raise NoMoreStreams from error

    def respond(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send the first headers of an answer, the last ones too where `end` says so."""
        self._engine.send_response(stream_id, _encode(headers), end_stream=end)

    def send_trailers(self, stream_id: int, trailers: Headers) -> None:
        """End this side of a stream."""
        self._engine.send_trailers(stream_id, _encode(trailers))

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream, and forget what is queued on it."""
        with suppress(_Over):
            self._engine.reset_stream(stream_id, code)

    def stream_room(self, stream_id: int) -> int:
        """Bytes that the peer's window for the stream allows beyond what is queued on it."""
        engine = self._engine
        return engine.stream_remote_window_size(stream_id) - engine.queued_body_size(stream_id)

    def room(self, stream_id: int, limit: int) -> int:
        """Bytes that can be queued on a stream and go out with the next output.

        limit: bytes that may be queued on all streams together.
        """
        engine = self._engine
        queued = engine.queued_body_size()
        return min(
            engine.stream_remote_window_size(stream_id) - engine.queued_body_size(stream_id),
            engine.remote_window_size - queued,
            limit - queued,
        )

    @property
    def connection_room(self) -> int:
        """Bytes that the peer's window for the connection allows beyond what is queued."""
        return self._engine.remote_window_size - self._engine.queued_body_size()

    def consume(self, stream_id: int, amount: int) -> bool:
        """Give the peer its window back for bytes that have found their reader.

        Returns whether there is output then: the peer is told once it is worth it.
        """
        self.held -= amount
        try:
            self._engine.acknowledge_received_data(amount, stream_id)
        except _Over:
            return False
        return self._engine.want_write

    @property
    def window_leaks(self) -> bool:
        """Whether an eighth of this end's window is lost for good.

        ngh2 0.3.0 forgets the bytes of a frame that has come in part when its stream is reset.
        Half a window may be consumed and not announced yet; what is missing beyond that is lost.
        """
        try:
            window = self._engine.local_window_size
        except _Over:
            return False
        missing = CONNECTION_WINDOW - window - self.held
        return missing > CONNECTION_WINDOW * 5 // 8

    def go_away(self) -> None:
        """Take no new streams of the peer, and say so."""
        self._engine.send_goaway()

    def terminate(self, code: int) -> None:
        """End the connection with an error."""
        self._engine.terminate_connection(code)
