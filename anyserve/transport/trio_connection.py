"""One HTTP/2 connection on a socket: a task that reads it, and one that writes what has gathered.

Nothing is written by the frame: all that was queued in one burst, or in one turn of Trio's loop,
goes out in one piece. What is read is handed to the streams at once, by a table and without tasks
in between.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from anyserve.burst import burst, defer, woke
from anyserve.errors import Unavailable
from anyserve.transport import http2, sockets
from anyserve.transport.flood import FloodGuard
from anyserve.transport.http2 import Http2, Http2Error
from anyserve.transport.rpc import MIB
from anyserve.transport.trio_stream import Stream
from anyserve.transport.wire import ErrorCode, error_of_reset
from anyserve.waiting import Waiter

_READ_BUFFER = 256 * 1024
_FEED = 64 * 1024
"""Bytes parsed at once; small enough that a flood is seen before it has cost much."""
_MANY_EVENTS = 64
"""Events of that many bytes after which others have a turn; those of a large tensor are few."""
_BACKLOG = 256 * 1024
"""Bytes that may wait for the socket before streams wait."""
_UNREAD = MIB
"""What a peer that reads nothing may send beside DATA: its frames can ask for answers."""
_GREETING = 20.0
"""Seconds for a peer to say that it speaks HTTP/2."""
_LAST_WORDS = 1.0
"""Seconds to read what a peer has sent that takes nothing any more."""
_FLOOD = 1000.0
"""Control frames a second, weighted."""
_OWN_RESET = 0.25
_INITIAL_WINDOW = 4

_log = logging.getLogger("anyserve.transport")


class _Thread(threading.local):
    """What all connections of a thread share."""

    def __init__(self) -> None:
        # It is written and read out again with no turn of the loop in between.
        self.buffer = memoryview(bytearray(_READ_BUFFER))


_thread = _Thread()


class Connection:
    """What servers and clients have in common; owns the socket."""

    def __init__(self, sock: socket.socket, *, client: bool, max_streams: int) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            # A peer that has gone again already; reading will tell.
            sockets.prepare(sock)
        self.peer = sockets.peer_name(sock)
        self.http2 = Http2(client=client, max_streams=max_streams)
        self.streams: dict[int, Stream] = {}
        """Those that HTTP/2 knows, by their ids."""
        self.ended: str | None = None
        """Why nothing can be sent or received any more."""
        self._sock = sock
        self._reading = trio.CancelScope()
        self._writer = Waiter()
        self._output_due = True
        self._early: list[bytes] = []
        self._unsent = memoryview(b"")
        self._broken = False
        self._failure: str | None = None
        """Why nothing can be sent, where there may still be something to read."""
        self._waiting: dict[Stream, None] = {}
        self._unread = 0
        # A server may be flooded by anybody; a client has chosen its server.
        self.flood = FloodGuard(math.inf if client else _FLOOD)
        self._handlers: dict[type, Callable[[Any], None]] = {
            http2.DataReceived: self._on_data,
            http2.StreamClosed: self._on_stream_closed,
            http2.StreamReset: self._on_stream_reset,
            http2.WindowUpdated: self._on_window_updated,
            http2.SettingsReceived: self._on_settings,
            http2.SettingsAcknowledged: self._on_control,
            http2.PingReceived: self._on_control,
            http2.PingAcknowledged: self._on_control,
            http2.PriorityUpdateReceived: self._on_control,
            http2.ConnectionClosed: self._on_connection_closed,
        }

    async def read(self) -> None:
        """Hand on what the peer sends, until the connection ends; the caller bounds it."""
        self._reading.deadline = trio.current_time() + _GREETING
        buffer = _thread.buffer
        with self._reading:
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    size = self._sock.recv_into(buffer)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.end(self._failure or error.strerror or str(error))
                    return
                if not size:
                    self.end(self._failure or "connection closed")
                    return
                if size <= _FEED:
                    with burst:
                        self._feed(buffer[:size])
                else:
                    await self._feed_all(buffer[:size])
        if self.ended is None:
            self.end(self._failure or "it does not speak HTTP/2")

    async def write(self) -> None:
        """Send what gathers, until the connection ends; the caller bounds it."""
        while self.ended is None:
            if not self._output_due:
                await self._writer.wait()
            self._output_due = False
            await self._flush()
            self.share_room()

    async def close(self, grace: float) -> None:
        """Send what is left, for at most `grace` seconds, and close the socket; not cancelled."""
        with trio.move_on_after(grace, shield=True):
            await self._flush()
        self.end("it is closed")
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        # Nothing is left that refers to itself, and would wait for the garbage collector.
        self._handlers.clear()

    def wake(self) -> None:
        """There is something to be sent."""
        if not self._output_due:
            self._output_due = True
            if not defer(self):
                self._writer.wake()

    def settle(self) -> None:
        """See `Outlet`; the writer does the rest."""
        if not self._unsent and self.ended is None:
            self._output_due = False
            if self._take_output():
                self._send_some()
            self.share_room()
        if self._unsent or self.ended is not None:
            self._output_due = True
            self._writer.wake()

    def push(self) -> None:
        """Write what is queued at once, and not with what gathers in this turn of the loop."""
        if not self._unsent and self.ended is None and self._take_output():
            self._send_some()
        if self._unsent:
            self.wake()

    def end(self, reason: str) -> None:
        """Read no more, and fail what is in flight."""
        if self.ended is not None:
            return
        self.ended = reason
        woke()  # the reader, and whoever waits at a stream or for room
        self._reading.cancel()
        self._writer.wake()
        error = Unavailable(f"the connection to {self.peer} is lost: {reason}")
        streams = tuple(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.lost(error)

    def _read_last_words(self, failure: str) -> None:
        """Nothing can be sent any more; what the peer has sent before says what it has taken."""
        if self._failure is None and self.ended is None:
            self._failure = failure
            self._reading.deadline = trio.current_time() + _LAST_WORDS
            self.retire()

    def retire(self) -> None:
        """Take no new streams; those that there are go on."""
        raise NotImplementedError

    def consume(self, stream_id: int, amount: int) -> None:
        """Bytes of a stream have found their reader."""
        if self.ended is None and self.http2.consume(stream_id, amount):
            self.wake()

    def reset(self, stream_id: int, code: int, *, after_output: bool) -> None:
        """End a stream; what is queued on it is sent before or never."""
        if after_output and self.ended is None:
            self._early.append(self._output())
        if stream_id in self.streams:
            self.http2.reset(stream_id, code)
            self.wake()
            if self.http2.window_leaks:
                self.retire()
            # To make this side reset its streams costs a peer no more than to reset them itself.
            self._count(_OWN_RESET)

    def room(self, stream: Stream) -> int:
        """Bytes that the stream may queue now; none or less where it has to wait."""
        return self.http2.room(stream.id, _BACKLOG - len(self._unsent))

    async def wait_for_room(self, stream: Stream) -> None:
        """Wait until it is worth looking again; streams with a window of their own take turns."""
        if self.http2.stream_room(stream.id) <= 0:
            self.share_room()  # it may have been woken for what it cannot use
            await stream.may_send.wait()
            return
        self._waiting[stream] = None
        try:
            await stream.may_send.wait()
        finally:
            self._waiting.pop(stream, None)

    def share_room(self) -> None:
        """Wake the next stream that waits for its turn, where there is room.

        It calls this again when it has taken its part: so no more are woken than find room.
        """
        if self._waiting and self.ended is None and self.http2.connection_room > 0:
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            stream.may_send.wake()

    async def _feed_all(self, data: memoryview) -> None:
        """Read many bytes of the peer; others have a turn where that is much work."""
        while data:
            with burst:
                events = self._feed(data[:_FEED])
            data = data[_FEED:]
            if data and events > _MANY_EVENTS:
                data = memoryview(bytes(data))  # others use the buffer meanwhile
                await trio.lowlevel.checkpoint()

    def _feed(self, data: memoryview) -> int:
        """Read bytes of the peer; whatever is wrong with them ends this connection alone.

        Returns how many events they made.
        """
        if self.ended is not None:
            return 0
        if not self._unsent:
            self._unread = 0
        self._unread += len(data)
        events: list[http2.Event] = []
        try:
            events = self.http2.feed(data)
            self._dispatch(events)
            if self._unread > _UNREAD:
                self._flooded()
            elif self.ended is None and self.http2.wants_output:
                self.wake()
        except Http2Error as error:
            self._broken = True
            _log.debug("protocol error of %s: %s", self.peer, error)
            self.end(str(error))
        except Exception:
            _log.exception("cannot read what %s sent", self.peer)
            self.end("internal error")
        return len(events)

    def _dispatch(self, events: list[http2.Event]) -> None:
        for event in events:
            if self.ended is not None:
                return
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def _output(self) -> bytes:
        """Take what can be sent now."""
        data = b""
        if not self._broken:
            try:
                data = self.http2.output()
            except Http2Error as error:
                self._broken = True
                self.end(str(error))
            else:
                if events := self.http2.events():
                    self._dispatch(events)
        if self._early:
            data = b"".join((*self._early, data))
            self._early.clear()
        return data

    async def _flush(self) -> None:
        """Give the socket what is unsent and the next output; cancelled, the rest is kept."""
        while self._unsent:
            await self._sent_some()
        if self._take_output():
            while self._unsent:
                await self._sent_some()

    async def _sent_some(self) -> None:
        if not self._send_some():
            await trio.lowlevel.wait_writable(self._sock)

    def _take_output(self) -> bool:
        """Make the next output what is unsent; False where there is none."""
        self._unsent = memoryview(self._output())
        return bool(self._unsent)

    def _send_some(self) -> bool:
        """Give the socket what it takes of what is unsent; False where it takes nothing now."""
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return False
        except OSError as error:
            self._unsent = memoryview(b"")
            self._broken = True
            self._read_last_words(error.strerror or str(error))
        else:
            self._unsent = self._unsent[sent:]
            self._unread = 0
        return True

    def _count(self, weight: float) -> None:
        if self.flood.exceeded(weight, trio.current_time()):
            self._flooded()

    def _flooded(self) -> None:
        if self.ended is None:
            _log.warning("closing the connection of %s: flood", self.peer)
            self.http2.terminate(ErrorCode.ENHANCE_YOUR_CALM)
            self.end("it floods")

    def _on_data(self, event: http2.DataReceived) -> None:
        data = event.data
        if data:
            self.http2.held += len(data)
            self._unread -= len(data)
        elif not event.end_stream:
            self._count(1.0)
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.arrived(data, event.end_stream)
        elif data:
            self.consume(event.stream_id, len(data))

    def _on_stream_closed(self, event: http2.StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is None:
            return
        stream.closed = True
        if event.error_code:
            if not stream.left:
                # Reset by the peer, or by HTTP/2 because of what the peer sent.
                self._count(1.0)
            stream.lost(error_of_reset(event.error_code))

    def _on_stream_reset(self, event: http2.StreamReset) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.lost(error_of_reset(event.error_code))

    def _on_window_updated(self, event: http2.WindowUpdated) -> None:
        self._count(self.flood.weigh_update(event.increment))
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.may_send.wake()
        elif not event.stream_id:
            self.share_room()

    def _on_control(self, event: http2.Event) -> None:
        self._count(1.0)

    def _on_settings(self, event: http2.SettingsReceived) -> None:
        self._count(1.0)
        if self._failure is None:
            self._reading.deadline = math.inf
        if _INITIAL_WINDOW in event.settings:
            self._count(0.02 * len(self.streams))
            for stream in self.streams.values():
                stream.may_send.wake()

    def _on_connection_closed(self, event: http2.ConnectionClosed) -> None:
        code = event.error_code
        self.end(f"it ended with error {code}" if code else "it is done")
