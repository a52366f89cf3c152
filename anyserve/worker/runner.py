"""Running one handler for one request: its tensors checked, its responses encoded.

The replica passes requests on as bytes, so everything that depends on the tensors is decided
here. It is the same for a worker process and for an app that runs in the replica's own process.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import attrs
import trio
from anyserve_actors import tracing
from anyserve_protos.infer_wire import decode_head
from anyserve_protos.inference import ModelInferRequest

from anyserve import parameters, tensors
from anyserve.app import Handler, Kind
from anyserve.errors import (
    AnyServeError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
)
from anyserve.link.frames import Buffer
from anyserve.messages import Context, Request, Response
from anyserve.offers import Offer
from anyserve.worker.responses import ResponseEncoder
from anyserve.worker.shared import ClientRegions

log = logging.getLogger("anyserve.worker")

Emit = Callable[[bytes, Sequence[Buffer]], Awaitable[None]]
"""Takes a ModelInferResponse without its raw contents, and those; waits for credit."""


@attrs.frozen
class Incoming:
    """A request as it reached the process that runs it."""

    head: Buffer
    """The ModelInferRequest without its raw contents."""
    raw: Sequence[Buffer]
    context: Context
    regions: ClientRegions


@attrs.frozen
class Ending:
    """How a request ended in the process that ran it."""

    batch: int = 1
    """How many inferences it counts for."""
    error: AnyServeError | None = None


async def run_handler(handler: Handler, incoming: Incoming, emit: Emit) -> Ending:
    """Run `handler` for one request in the context's cancel scope, handing responses to `emit`.

    Waits for the handler, bounded by the scope and the deadline; cancelled, a blocking handler's
    thread is waited for, since it can't be ended. Whatever goes wrong is in the `Ending`: the
    request's own faults, errors that the handler raised on purpose, `Internal` for all others,
    `DeadlineExceeded` and `Cancelled` for the scope's end.
    """
    context = incoming.context
    context.cancel_scope.deadline = context.deadline
    try:
        with context.cancel_scope:
            return Ending(await _run(handler, incoming, emit))
    except AnyServeError as error:
        return Ending(error=error)
    except Exception as error:
        log.exception("a request of %r failed outside its handler", handler.offer.name)
        return Ending(error=Internal(f"{type(error).__name__}: {error}"))
    if trio.current_time() >= context.deadline:
        return Ending(error=DeadlineExceeded("the deadline passed while the handler ran"))
    return Ending(error=Cancelled("the request was cancelled"))


async def _run(handler: Handler, incoming: Incoming, emit: Emit) -> int:
    """Check the request, run the handler, encode what it gives; the request's batch size."""
    message = _decode(incoming.head)
    shared = incoming.regions.read_inputs(message)
    arrays = tensors.decode_inputs(message, incoming.raw, shared)
    batch = check_inputs(handler.offer, arrays)
    encoder = ResponseEncoder(handler.offer, message, incoming.regions)
    values = parameters.decode_all(message.parameters)
    request = Request(handler.offer.name, arrays, message.id, values)
    context = incoming.context
    try:
        with tracing.span(handler.offer.name, context.request_id):
            if handler.kind is Kind.ASYNC:
                response = await handler.function(request, context)
                await emit(*encoder.encode(response))
            else:
                async with aclosing(_responses(handler, request, context)) as responses:
                    async for response in responses:
                        await emit(*encoder.encode(response))
    except (Exception, SystemExit) as error:
        declared = _declared(error)
        if declared is not None:
            raise declared from error
        context.logger.exception("the handler of %r failed", handler.offer.name)
        raise Internal(f"{type(error).__name__}: {error}") from error
    return batch


def _declared(error: BaseException) -> AnyServeError | None:
    """The error that a handler raised on purpose, also from inside a nursery of its own."""
    if isinstance(error, AnyServeError):
        return error
    if isinstance(error, ExceptionGroup):
        purposeful, others = error.split(AnyServeError)
        if purposeful is not None and others is None:
            return _declared(purposeful.exceptions[0])
    return None


def _decode(head: Buffer) -> ModelInferRequest:
    try:
        return decode_head(head)
    except ValueError as error:
        raise InvalidArgument(f"the request is no ModelInferRequest: {error}") from error


def check_inputs(offer: Offer, arrays: Mapping[str, Any]) -> int:
    """Hold the inputs against what the handler declared; returns the batch size, 1 without one.

    Raises `InvalidArgument` naming the input. Nothing declared lets every input through.
    """
    if offer.inputs:
        declared = {spec.name: spec for spec in offer.inputs}
        for name in arrays:
            if name not in declared:
                raise InvalidArgument(f"input {name!r}: {offer.name!r} takes {', '.join(declared)}")
        for spec in offer.inputs:
            if spec.name in arrays:
                array = arrays[spec.name]
                spec.check(tensors.datatype_of(array), array.shape, offer.max_batch_size > 0)
            elif not spec.optional:
                raise InvalidArgument(f"input {spec.name!r} is missing")
    return _batch_size(offer, arrays) if offer.max_batch_size else 1


def _batch_size(offer: Offer, arrays: Mapping[str, Any]) -> int:
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidArgument(f"the inputs' batch sizes differ: {sizes}")
    size = next(iter(sizes.values()), 1)
    if not 1 <= size <= offer.max_batch_size:
        raise InvalidArgument(
            f"batch size {size}: {offer.name!r} takes from 1 to {offer.max_batch_size}"
        )
    return size


async def _responses(
    handler: Handler, request: Request, context: Context
) -> AsyncGenerator[Response, None]:
    """Call a handler that yields or blocks in the way that its kind needs."""
    if handler.kind is Kind.ASYNC_STREAM:
        async with aclosing(handler.function(request, context)) as responses:
            async for response in responses:
                yield response
    elif handler.kind is Kind.BLOCKING:
        # Not abandoned when cancelled: the slot is taken for as long as the thread runs.
        yield await trio.to_thread.run_sync(handler.function, request, context)
    else:
        generator = handler.function(request, context)
        try:
            while (response := await trio.to_thread.run_sync(_step, generator)) is not None:
                yield response
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(generator.close)


def _step(generator: Generator[Response, None, None]) -> Response | None:
    return next(generator, None)
