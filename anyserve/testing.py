"""Test your handlers in process: no sockets, no workers, and the same checks as in a replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
from anyserve_protos.codec import decode
from anyserve_protos.infer_wire import scan_request
from anyserve_protos.inference import ModelInferResponse

from anyserve.app import App
from anyserve.capability import Attribute, need_of
from anyserve.client import Result, decode_response, encode_request
from anyserve.errors import Unimplemented
from anyserve.messages import OutputValue
from anyserve.replica.calls import HandlerRequests
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call
from anyserve.replica.local import LocalExecutor
from anyserve.replica.pool import State
from anyserve.replica.replies import Replies
from anyserve.replica.sequences import sequence_of


class TestClient:
    """Calls an app's handlers; see `open_test_client`.

    A call is cut off by the caller's cancel scope, and its deadline is the handler's. It raises
    the `AnyServeError` that a client would see.
    """

    __test__ = False  # not a test class, whatever its name

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def infer(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute] | None = None,
    ) -> Result:
        """The one response to a request; `Unimplemented` where there are none or several."""
        responses = [r async for r in self.generate(capability, inputs, parameters)]
        if len(responses) != 1:
            raise Unimplemented(f"{capability!r} gave {len(responses)} responses: use generate")
        return responses[0]

    async def generate(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute] | None = None,
    ) -> AsyncGenerator[Result, None]:
        """The responses to a request as they come; use it with `contextlib.aclosing`."""
        head = scan_request(encode_request(capability, inputs, parameters or {}))
        need = need_of(capability, head.parameters)
        offer = self._dispatcher.match(need)[0].offer
        call = Call(
            need=need,
            head=head.head,
            raw=head.raw,
            request_id="test",
            deadline=trio.current_effective_deadline(),
            sequence=sequence_of(head.parameters) if offer.sequence else None,
        )
        async with Replies(self._dispatcher, call) as execution:
            while (reply := await execution.receive()) is not None:
                message = b"".join(reply.pieces)
                reply.release()
                yield decode_response(decode(ModelInferResponse, message))


@asynccontextmanager
async def open_test_client(app: App) -> AsyncIterator[TestClient]:
    """Run an app, its lifespan included, for the time of the block.

    async with open_test_client(app) as client:
        response = await client.infer("echo", {"INPUT0": [1, 2, 3]})
        assert response["OUTPUT0"].tolist() == [1, 2, 3]
    """
    async with app.running(), trio.open_nursery() as nursery:
        dispatcher = Dispatcher()
        dispatcher.calls = HandlerRequests(dispatcher)
        nursery.start_soon(dispatcher.deadlines.run)
        executor = LocalExecutor(app, nursery, dispatcher)
        dispatcher.worker_up(executor, app.offers)
        app.watch(lambda name, now: dispatcher.worker_condition(executor, name, now))
        for offer in app.offers:
            dispatcher.set_state(offer.name, State.READY)
        yield TestClient(dispatcher)
        nursery.cancel_scope.cancel()
