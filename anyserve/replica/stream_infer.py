"""ModelStreamInfer: many requests in flight on one stream, each with 0 to n responses."""

from __future__ import annotations

import trio
from anyserve_actors import tracing
from anyserve_protos.infer_wire import stream_response
from anyserve_protos.inference import (
    InferParameter,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from anyserve.errors import AnyServeError, Unavailable
from anyserve.replica.dispatcher import Execution
from anyserve.replica.inference import Accepted, Inference, scan
from anyserve.transport.rpc import ServerStream

IN_FLIGHT_LIMIT = 1024
"""Requests of one stream that run or wait at once; the next is read when one has ended."""
EMPTY_FINAL = "triton_enable_empty_final_response"
"""Request parameter that asks for a final, empty response after those of a decoupled handler."""
FINAL = "triton_final_response"
"""Response parameter that says whether this is the request's last response."""


def _flag(value: bool) -> bytes:
    """A ModelInferResponse with nothing but the flag: appended to another, it adds the flag."""
    return bytes(ModelInferResponse(parameters={FINAL: InferParameter(bool_param=value)}))


_IS_FINAL = _flag(True)
_IS_NOT_FINAL = _flag(False)


class StreamedInference:
    """One ModelStreamInfer call.

    All its requests run at once. Handlers that answer exactly once are answered for in the order
    in which their requests came; the responses of decoupled ones go out as they come. An error
    ends its request and not the stream.
    """

    def __init__(self, inference: Inference, stream: ServerStream) -> None:
        self._inference = inference
        self._stream = stream
        self._room = trio.Semaphore(IN_FLIGHT_LIMIT, max_value=IN_FLIGHT_LIMIT)

    async def run(self) -> None:
        """Serve until the client has ended the stream and everything that is due is sent.

        Once the replica drains, no more requests are read, and the stream ends after the answers
        to those before: raises `Unavailable`.
        """
        turn = trio.Event()
        turn.set()
        async with trio.open_nursery() as nursery:
            with self._inference.accepting() as scope:
                while (body := await self._stream.recv_message()) is not None:
                    await self._room.acquire()
                    accepted = self._accept(body)
                    if isinstance(accepted, Accepted) and accepted.offer.decoupled:
                        nursery.start_soon(self._decoupled, accepted)
                    else:
                        following = trio.Event()
                        nursery.start_soon(self._ordered, accepted, turn, following)
                        turn = following
        if scope.cancelled_caught:
            raise Unavailable("the replica is draining")

    def _accept(self, body: bytes) -> Accepted | bytes:
        """The request, matched; or the response that says what is wrong with it."""
        identity = ""
        try:
            head = scan(body)
            identity = head.id
            return self._inference.accept(head, self._stream)
        except AnyServeError as error:
            return _error(error, identity)

    async def _ordered(
        self, accepted: Accepted | bytes, turn: trio.Event, following: trio.Event
    ) -> None:
        """Answer once, when all requests before have been answered."""
        try:
            message = accepted
            if isinstance(message, Accepted):
                message = await self._single(message)
            await turn.wait()
            await self._stream.send_message(message)
        finally:
            following.set()
            self._room.release()

    async def _single(self, accepted: Accepted) -> bytes:
        try:
            with tracing.span("ModelStreamInfer", accepted.call.request_id):
                return stream_response(await self._inference.single(accepted) + _IS_FINAL)
        except AnyServeError as error:
            return _error(error, accepted.head.id)

    async def _decoupled(self, accepted: Accepted) -> None:
        """Pass responses on as they come."""
        try:
            with tracing.span("ModelStreamInfer", accepted.call.request_id):
                await self._inference.run(accepted, self._pass_on)
            if accepted.head.parameters.get(EMPTY_FINAL) is True:
                await self._stream.send_message(stream_response(_empty_final(accepted)))
        except AnyServeError as error:
            await self._stream.send_message(_error(error, accepted.head.id))
        finally:
            self._room.release()

    async def _pass_on(self, execution: Execution) -> None:
        while (reply := await execution.receive()) is not None:
            message = stream_response(bytes(reply.head) + _IS_NOT_FINAL, reply.raw)
            reply.release()
            await self._stream.send_message(message)


def _empty_final(accepted: Accepted) -> bytes:
    offer = accepted.offer
    response = ModelInferResponse(
        model_name=offer.name, model_version=offer.version, id=accepted.head.id
    )
    return bytes(response) + _IS_FINAL


def _error(error: AnyServeError, identity: str) -> bytes:
    return bytes(
        ModelStreamInferResponse(
            error_message=error.message, infer_response=ModelInferResponse(id=identity)
        )
    )
