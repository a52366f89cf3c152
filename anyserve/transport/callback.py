"""Unary methods that are called back with a whole request, and answer when they can.

A method that waits for something else than its caller needs no task for that. Where the request
has come in one piece the transport calls `Callback.begin` at once; elsewhere, and on the reference
transport, the same method runs as a task like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import trio

from anyserve.burst import nothing
from anyserve.errors import AnyServeError
from anyserve.transport.rpc import Buffer, MetadataLike, ServerStream


class UnaryCall(Protocol):
    """One call whose request is here. It ends with `answer` or `fail`, whichever comes first."""

    deadline: float
    """Absolute, on Trio's clock, in seconds; `inf` when the client gave none. The method keeps
    it: nothing else ends the call then."""
    on_gone: Callable[[], None]
    """Called, once, when nobody waits for the answer any more: the client has reset the call, the
    connection is lost, or the server stops. Not after the call has ended."""

    @property
    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """Of the request; `bytes` for the keys that end in `-bin`."""
        ...

    def answer(self, pieces: Sequence[Buffer], release: Callable[[], None] = nothing) -> None:
        """Answer with the message that the pieces make; `release` is called when they are sent."""
        ...

    def fail(self, error: AnyServeError, metadata: MetadataLike | None = None) -> None:
        """End the call with a status; metadata: of its trailers."""
        ...


class Callback:
    """A method's handler that is called back; it takes and gives bytes.

    `begin` is called in Trio's thread and must not wait. It raises an `AnyServeError` to end the
    call with that status.
    """

    def __init__(self, begin: Callable[[UnaryCall, bytes], None]) -> None:
        self.begin = begin

    async def __call__(self, stream: ServerStream) -> None:
        """Answer one call as a task of it, as every handler does."""
        message = await stream.recv_message()
        call = _CallOfTask(stream)
        try:
            try:
                self.begin(call, message)
            except Exception:
                call.on_gone = nothing  # it knows
                raise
            await call.ended.wait()
        except BaseException:
            call.give_up()
            raise
        await call.send(stream)


class _CallOfTask:
    """The call, for a task that waits for its end."""

    def __init__(self, stream: ServerStream) -> None:
        self.metadata: Iterable[tuple[str, str | bytes]] = tuple(stream.metadata.items())
        self.deadline = stream.deadline
        self.on_gone: Callable[[], None] = nothing
        self.ended = trio.Event()
        self._pieces: Sequence[Buffer] = ()
        self._release: Callable[[], None] = nothing
        self._error: AnyServeError | None = None
        self._metadata: MetadataLike | None = None

    def answer(self, pieces: Sequence[Buffer], release: Callable[[], None] = nothing) -> None:
        """See `UnaryCall`."""
        if self.ended.is_set():
            release()
            return
        self._pieces, self._release = pieces, release
        self._end()

    def fail(self, error: AnyServeError, metadata: MetadataLike | None = None) -> None:
        """See `UnaryCall`."""
        if not self.ended.is_set():
            self._error, self._metadata = error, metadata
            self._end()

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        if self.ended.is_set():
            self._release()
        else:
            on_gone = self.on_gone
            self._end()
            on_gone()

    def _end(self) -> None:
        # What the method holds of the call, and the call of it, would else wait for the collector.
        self.on_gone = nothing
        self.ended.set()

    async def send(self, stream: ServerStream) -> None:
        """Send the answer or the error; waits for the client to take it."""
        error = self._error
        if error is not None:
            await stream.send_trailing_metadata(
                status=error.status, status_message=error.message, metadata=self._metadata
            )
            return
        try:
            await stream.send_message(tuple(self._pieces))
            await stream.send_trailing_metadata()
        finally:
            self._release()
