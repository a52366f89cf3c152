"""What a gRPC service is to AnyServe, whatever carries it: methods, their stream, limits, codec.

A service is an object with grpclib's `__mapping__()`, whose handler functions are *Trio* coroutine
functions that take one `ServerStream`. Services that betterproto2 generates are such objects. A
request or reply type of `bytes` in the mapping passes messages undecoded; one that is sent may also
be a sequence of buffers, which make it together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs
from anyserve_protos import codec
from anyserve_protos.wire import WireError
from grpclib.const import Cardinality
from grpclib.const import Handler as Method
from grpclib.const import Status as GrpclibStatus
from multidict import MultiDict

from anyserve.errors import InvalidArgument, Status

Metadata: TypeAlias = MultiDict[str | bytes]
"""Metadata of a call: `str` values, and `bytes` for the keys that end in `-bin`."""

MetadataLike: TypeAlias = Mapping[str, str | bytes] | Collection[tuple[str, str | bytes]]

Buffer: TypeAlias = bytes | bytearray | memoryview
_PIECES = (list, tuple)
"""Flat bytes."""

MIB = 1024 * 1024


@attrs.frozen
class Limits:
    """Bounds of one server or channel."""

    max_message_bytes: int = 256 * MIB
    """Largest message that is received, after decompression."""
    max_streams: int = 1024
    """Calls that one connection may have in flight."""


class Service(Protocol):
    """An object that serves methods."""

    def __mapping__(self) -> Mapping[str, Method]:
        """The method of each path, such as `/package.Service/Method`."""
        ...


class ServerStream(Protocol):
    """One call, as its handler sees it.

    The handler runs in a cancel scope that ends with the call: when the client resets it, the
    connection breaks, the deadline passes or the server stops. It raises an `AnyServeError` to
    end the call with that status; any other exception becomes INTERNAL.
    """

    metadata: Metadata
    deadline: float
    """Absolute, on Trio's clock, in seconds; `inf` when the client gave none."""
    peer: str
    """Who calls: `host:port`, or `unix`."""
    cardinality: Cardinality

    async def recv_message(self) -> Any:
        """The next message, or None once the client has ended its side.

        Waits for the client, where the message is not here yet. Cancelled, it may lose a message
        that was partly received: the call is then good for nothing but to be ended. Raises
        `InvalidArgument` for a message that is cut short or cannot be parsed, and for a unary
        request that ends without a message, and `ResourceExhausted` for one over the limit.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def send_message(self, message: Any) -> None:
        """Send one message; several tasks may do so at once, each message stays whole.

        Waits while the client does not read, which is how a slow client holds its handler, and
        returns without a turn of the loop where there is room. A unary reply is kept, and goes
        out in one write with the status when the handler returns. Cancelled before it has waited,
        nothing is sent; later, the call can only be ended.
        """
        ...

    def send_messages_now(self, messages: Sequence[Any]) -> bool:
        """Send messages of a stream where nothing has to be waited for; else False, and nothing.

        Whoever has the stream may call it, in the handler's task or not.
        """
        ...

    async def send_initial_metadata(self, *, metadata: MetadataLike | None = None) -> None:
        """Send the response's headers now; otherwise they go with the first message."""
        ...

    async def send_trailing_metadata(
        self,
        *,
        status: Status | GrpclibStatus = Status.OK,
        status_message: str | None = None,
        metadata: MetadataLike | None = None,
    ) -> None:
        """End the call; otherwise it ends with OK when the handler returns."""
        ...

    async def cancel(self) -> None:
        """End the call by resetting its stream, without a status."""
        ...


def decode(data: bytes, message_type: Any) -> Any:
    """Parse `data` as `message_type`; the data itself where that is `bytes`.

    Raises `InvalidArgument` when it is not such a message.
    """
    if message_type is bytes:
        return data
    try:
        return codec.decode(message_type, data)
    except WireError as error:
        raise InvalidArgument(f"malformed {message_type.__name__}: {error}") from error


def encode(message: Any, message_type: Any) -> Sequence[Buffer]:
    """Serialise `message`, in pieces; raises TypeError when it is not a `message_type`."""
    if message_type is bytes and isinstance(message, _PIECES):
        return message
    if not isinstance(message, message_type):
        raise TypeError(f"expected a {message_type.__name__}, got a {type(message).__name__}")
    return (message if message_type is bytes else message.SerializeToString(),)
