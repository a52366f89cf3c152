"""gRPC's length-prefixed messages: cut out of a call's bytes, inflated under a cap.

grpclib's own reader believes any length prefix, knows no compression and fails an assertion on a
cut message; hence this one.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from anyserve.errors import Internal, InvalidArgument, ResourceExhausted
from anyserve.transport.rpc import Buffer

ENCODINGS = ("identity", "deflate", "gzip")

_PREFIX = struct.Struct(">BI")
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}
_INFLATE_STEP = 256 * 1024
"""Bytes inflated between two checkpoints: about a millisecond."""
_COPIED = 64 * 1024
"""Messages shorter than this are cheaper to copy than to send in two parts."""


def pack(pieces: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """A message behind its prefix, not compressed; pieces of large ones stay as they are."""
    if len(pieces) == 1:
        (piece,) = pieces
        prefix = _PREFIX.pack(0, len(piece))
        return (prefix + piece,) if len(piece) < _COPIED else (prefix, piece)
    size = sum(map(len, pieces))
    prefix = _PREFIX.pack(0, size)
    return (b"".join((prefix, *pieces)),) if size < _COPIED else (prefix, *pieces)


def only_message(data: bytes, max_bytes: int) -> bytes | None:
    """The message, where `data` is exactly one that is not compressed and not over the cap."""
    size = len(data) - _PREFIX.size
    if 0 <= size <= max_bytes and _PREFIX.unpack_from(data) == (0, size):
        return data[_PREFIX.size :]
    return None


class Splitter:
    """Cuts bytes into messages that are not compressed, as they come.

    Holds no more than one message of at most `max_bytes`, and what came behind it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._size = 0
        self._wanted = _PREFIX.size

    @property
    def unfinished(self) -> bool:
        """Whether the bytes so far end within a message."""
        return self._size > 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that are complete with `chunk`.

        Raises `ResourceExhausted` for one over the cap, `Internal` for a compressed one.
        """
        if not self._size:
            message = only_message(chunk, self._max_bytes)
            if message is not None:
                return [message]
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size < self._wanted:
            return []
        data = b"".join(self._chunks)
        messages = []
        start = 0
        while True:
            end = start + _PREFIX.size
            if end <= len(data):
                flag, length = _PREFIX.unpack_from(data, start)
                if flag:
                    raise Internal("a message is compressed, and the call did not ask for that")
                if length > self._max_bytes:
                    raise ResourceExhausted(
                        f"a message of {length} bytes is over the limit of {self._max_bytes} bytes"
                    )
                end += length
            if end > len(data):
                break
            messages.append(data[start + _PREFIX.size : end])
            start = end
        self._chunks = [data[start:]] if start < len(data) else []
        self._size = len(data) - start
        self._wanted = end - start
        return messages


class MessageReader:
    """Cuts one call's bytes into messages; for one task at a time.

    Holds no more than one message of at most `max_bytes`, and what its source gave too much.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[list[bytes]]], encoding: str, max_bytes: int
    ) -> None:
        """`receive` gives the next bytes of the call, in one piece or many, none at its end."""
        self._receive = receive
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._chunks: deque[bytes] = deque()
        self._size = 0

    async def read(self) -> bytes | None:
        """The next message, None when the call's bytes end before another one begins.

        Waits for the peer; a cancelled read leaves the reader unusable. Raises
        `InvalidArgument` for a message that is cut short or does not inflate, `ResourceExhausted`
        for one that is or inflates to more than the cap, and `Internal` for a compressed one in a
        call that names no compression.
        """
        if not self._size:
            chunks = await self._receive()
            if len(chunks) == 1:
                message = only_message(chunks[0], self._max_bytes)
                if message is not None:  # most calls are that, and need no more
                    return message
            elif not chunks:
                return None
            self._hold(chunks)
        if not await self._fill(_PREFIX.size):
            raise InvalidArgument(f"the stream ends {self._size} bytes into a message's prefix")
        compressed, length = _PREFIX.unpack(self._take(_PREFIX.size))
        if compressed > 1:
            raise Internal(f"a message's prefix has the flag {compressed}")
        if compressed and self._encoding == "identity":
            raise Internal("a message is compressed, but the call names no grpc-encoding")
        if length > self._max_bytes:
            raise self._too_large(f"a message of {length} bytes")
        if compressed:
            return await self._inflate(length)
        if not await self._fill(length):
            raise self._cut(length - self._size)
        return self._take(length)

    async def _fill(self, size: int) -> bool:
        """Hold at least `size` bytes; False when the call has no more."""
        while self._size < size:
            chunks = await self._receive()
            if not chunks:
                return False
            self._hold(chunks)
        return True

    def _hold(self, chunks: list[bytes]) -> None:
        self._chunks.extend(chunks)
        self._size += sum(map(len, chunks))

    def _take(self, size: int) -> bytes:
        """Take exactly `size` bytes, which are held."""
        self._size -= size
        if not self._size:
            # Of a large message there are hundreds of chunks, and mostly nothing behind it.
            taken = b"".join(self._chunks)
            self._chunks.clear()
            return taken
        parts = []
        while size:
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            parts.append(chunk)
            size -= len(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _inflate(self, length: int) -> bytes:
        """Inflate a compressed message of `length` bytes as its bytes arrive."""
        inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        parts: list[bytes] = []
        room = self._max_bytes
        while length:
            if not await self._fill(1):
                raise self._cut(length)
            chunk = self._take(min(length, self._size, _INFLATE_STEP))
            length -= len(chunk)
            full = True
            while chunk or full:
                # One byte over the cap is enough to know.
                step = min(_INFLATE_STEP, room + 1)
                try:
                    part = inflater.decompress(chunk, step)
                except zlib.error as error:
                    raise InvalidArgument(f"a {self._encoding} message does not inflate") from error
                room -= len(part)
                if room < 0:
                    raise self._too_large(f"a {self._encoding} message that inflates to more")
                parts.append(part)
                full = len(part) == step
                chunk = inflater.unconsumed_tail
                await trio.lowlevel.checkpoint()
            if inflater.unused_data or (inflater.eof and length):
                raise InvalidArgument(f"a {self._encoding} message goes on after its end")
        if not inflater.eof:
            raise InvalidArgument(f"a {self._encoding} message ends before its compression does")
        return b"".join(parts)

    def _cut(self, missing: int) -> InvalidArgument:
        return InvalidArgument(f"the stream ends {missing} bytes before its message does")

    def _too_large(self, what: str) -> ResourceExhausted:
        return ResourceExhausted(f"{what} is over the limit of {self._max_bytes} bytes")
