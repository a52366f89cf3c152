"""Running one handler for one request: its tensors checked, its responses encoded.

The replica passes requests on as bytes, so everything that depends on the tensors is decided
here. It is the same for a worker process and for an app that runs in the replica's own process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import Protocol

import attrs
import trio

from anyserve.app import Handler, Kind
from anyserve.errors import (
    AnyServeError,
    Cancelled,
    DeadlineExceeded,
    Internal,
)
from anyserve.link.frames import Buffer
from anyserve.messages import Context, Request, Response
from anyserve.traces import handler_span
from anyserve.worker.plans import Plans
from anyserve.worker.shared import ClientRegions

log = logging.getLogger("anyserve.worker")


class Sink(Protocol):
    """Takes the responses of one request, each a ModelInferResponse in pieces."""

    @property
    def credit(self) -> int:
        """How many may be sent now."""
        ...

    async def until_credit(self) -> None:
        """Wait until there is some, which is when the client has read; the caller bounds it."""
        ...

    def send(self, response: Sequence[Buffer]) -> None:
        """Send one, and use up its credit. Pieces are copied, or lent where they are large."""
        ...

    def count(self, more: int, prompt: int) -> None:
        """Say that the one sent has so many tokens more than one, and the prompt so many."""
        ...


@attrs.define
class Incoming:
    """A request as it reached the process that runs it."""

    head: Buffer
    """The ModelInferRequest without its raw contents."""
    raw: Sequence[Buffer]
    context: Context
    regions: ClientRegions


@attrs.define
class Ending:
    """How a request ended in the process that ran it."""

    batch: int = 1
    """How many inferences it counts for."""
    last: Sequence[Buffer] | None = None
    """The response of a handler that answers once, in pieces."""
    error: AnyServeError | None = None


class HandlerRunner:
    """Runs one handler for one request after the other, or for many at once."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._plans = Plans(handler.offer)
        self.name = handler.offer.name
        """The capability."""

    async def run(self, incoming: Incoming, sink: Sink, scope: trio.CancelScope) -> Ending:
        """Run the handler, handing the responses of a stream to `sink`.

        scope: one that the caller is in; the request's deadline becomes its own.

        Waits for the handler, bounded by the scope; cancelled, a blocking handler's thread is
        waited for, since it can't be ended. Raises nothing but the cancellation, for which the
        ending is `cut_off`. Whatever else goes wrong is in the `Ending`: the request's own faults,
        errors that the handler raised on purpose, and `Internal` for all others.
        """
        context = incoming.context
        if context.deadline != math.inf:
            scope.deadline = context.deadline
        try:
            return await self._run(incoming, sink)
        except AnyServeError as error:
            return Ending(error=error)
        except Exception as error:
            context.logger.exception("a request of %r failed outside its handler", self.name)
            return Ending(error=Internal(f"{type(error).__name__}: {error}"))

    async def _run(self, incoming: Incoming, sink: Sink) -> Ending:
        """Check the request, run the handler, encode what it gives."""
        opened = self._plans.open(incoming.head, incoming.raw, incoming.regions)
        request, encoder = opened.request, opened.encoder
        handler, context = self._handler, incoming.context
        try:
            with handler_span(self.name, context.request_id, context.traceparent):
                if handler.kind is Kind.ASYNC:
                    response = await handler.function(request, context)
                    return Ending(opened.batch, encoder.encode(response))
                async with aclosing(_responses(handler, request, context)) as responses:
                    async for response in responses:
                        if not sink.credit:
                            await sink.until_credit()
                        sink.send(encoder.encode(response))
                        if response.tokens != 1 or response.prompt_tokens:
                            sink.count(response.tokens - 1, response.prompt_tokens)
        except (Exception, SystemExit, BaseExceptionGroup) as error:
            if _is_cancellation(error):
                raise
            return Ending(error=self._verdict(error, context))
        return Ending(opened.batch)

    def _verdict(self, error: BaseException, context: Context) -> AnyServeError:
        """What a handler's exception is to its client.

        Returned and not raised: a frame that raises what it has a name for is in a cycle with it,
        and so is all of the request.
        """
        declared = _declared(error)
        if declared is not None:
            return declared
        context.logger.error("the handler of %r failed", self.name, exc_info=error)
        internal = Internal(f"{type(error).__name__}: {error}")
        internal.__cause__ = error
        return internal


def cut_off(scope: trio.CancelScope, deadline: float, stopping: AnyServeError) -> Ending:
    """How a request ended whose handler was cancelled; stopping: where that was not its own end."""
    if not scope.cancel_called:
        return Ending(error=stopping)
    if trio.current_time() >= deadline:
        return Ending(error=DeadlineExceeded("the deadline passed while the handler ran"))
    return Ending(error=Cancelled("the request was cancelled"))


def _is_cancellation(error: BaseException) -> bool:
    """Whether Trio's cancellation is in a group, which must go on as it is."""
    return isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None


def _declared(error: BaseException) -> AnyServeError | None:
    """The error that a handler raised on purpose, also from inside a nursery of its own."""
    if isinstance(error, AnyServeError):
        return error
    if isinstance(error, ExceptionGroup):
        purposeful, others = error.split(AnyServeError)
        if purposeful is not None and others is None:
            return _declared(purposeful.exceptions[0])
    return None


def _responses(
    handler: Handler, request: Request, context: Context
) -> AsyncGenerator[Response, None]:
    """Call a handler that yields or blocks in the way that its kind needs."""
    if handler.kind is Kind.ASYNC_STREAM:
        responses: AsyncGenerator[Response, None] = handler.function(request, context)
        return responses
    return _in_thread(handler, request, context)


async def _in_thread(
    handler: Handler, request: Request, context: Context
) -> AsyncGenerator[Response, None]:
    if handler.kind is Kind.BLOCKING:
        # Not abandoned when cancelled: the slot is taken for as long as the thread runs.
        yield await trio.to_thread.run_sync(handler.function, request, context)
        return
    generator = handler.function(request, context)
    try:
        while (response := await trio.to_thread.run_sync(_step, generator)) is not None:
            yield response
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(generator.close)


def _step(generator: Generator[Response, None, None]) -> Response | None:
    return next(generator, None)
