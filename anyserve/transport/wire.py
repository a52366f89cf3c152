"""What a call needs of an HTTP/2 stream: the line between gRPC and whatever carries it."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import trio

from anyserve.errors import AnyServeError, Cancelled, Internal, ResourceExhausted, Unavailable
from anyserve.transport.headers import Headers
from anyserve.transport.rpc import Buffer


class ErrorCode(IntEnum):
    """Those of HTTP/2's error codes that mean something to gRPC."""

    NO_ERROR = 0
    REFUSED_STREAM = 7
    CANCEL = 8
    ENHANCE_YOUR_CALM = 11


class NotTaken(Unavailable):
    """The server has not begun the call, and says so: it may be made again."""


def error_of_reset(code: int) -> AnyServeError:
    """What a stream fails with that the peer has reset with an HTTP/2 error code."""
    match code:
        case ErrorCode.REFUSED_STREAM:
            return NotTaken("the peer did not take the call")
        case ErrorCode.CANCEL | ErrorCode.NO_ERROR:
            return Cancelled("the peer gave the call up")
        case ErrorCode.ENHANCE_YOUR_CALM:
            return ResourceExhausted("the peer is flooded")
        case _:
            return Internal(f"the stream was reset with error {code}")


class WireStream(Protocol):
    """One HTTP/2 stream, with either end of the call behind it."""

    peer: str
    scope: trio.CancelScope
    """A server's: cancelled when the client gives the call up or its connection breaks."""

    async def receive(self) -> list[bytes]:
        """The bytes of the peer's DATA frames that are here, none once the peer has ended its side.

        Waits for the peer where there are none, and gives its window back for what is taken.
        Cancelled, nothing is lost. Raises an `AnyServeError` when the stream has failed.
        """
        ...

    def send_now(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> bool:
        """What `send` does, where nothing has to be waited for; False, and nothing sent, else."""
        ...

    async def send(
        self,
        headers: Headers | None = None,
        data: tuple[Buffer, ...] = (),
        trailers: Headers | None = None,
        end: bool = False,
    ) -> None:
        """Send what is given, in this order, in as few writes as the peer allows; one task a time.

        Trailers end the stream, and so does `end`. Waits for the peer's windows and for its socket
        to take bytes. Cancelled while it waits, part of it has been sent. Raises an
        `AnyServeError` when the stream has failed.
        """
        ...

    def end_now(self, trailers: Headers) -> None:
        """Send the trailers without waiting, where the stream is still open."""
        ...

    def reset(self) -> None:
        """Give the stream up, where it is still open."""
        ...
