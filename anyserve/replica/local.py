"""An app that runs in this process: the executor behind the test client."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio
from anyserve_protos.infer_wire import join_response

from anyserve.app import App
from anyserve.errors import Cancelled
from anyserve.link.frames import INITIAL_CREDIT, Buffer
from anyserve.messages import Context
from anyserve.objects.region_files import RegionFiles
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.worker.runner import Ending, HandlerRunner, Incoming
from anyserve.worker.shared import ClientRegions


class _LocalExchange(Exchange):
    """A call that runs as a task of this process."""

    def __init__(self, listener: Listener, scope: trio.CancelScope, credit: trio.Semaphore) -> None:
        super().__init__(listener)
        self._scope = scope
        self._credit = credit

    def on_cancelled(self) -> None:
        self._scope.cancel()

    def consumed(self) -> None:
        self._credit.release()


class LocalExecutor:
    """Runs handlers as tasks of a nursery, with the semantics of a worker and no link."""

    def __init__(self, app: App, nursery: trio.Nursery) -> None:
        self._runners = {handler.offer.name: HandlerRunner(handler) for handler in app.handlers}
        self._nursery = nursery
        self._files = RegionFiles()
        self._lost: str | None = None

    @property
    def name(self) -> str:
        return "local"

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """See `Executor`: starts the handler."""
        if self._lost is not None:
            raise WorkerLost(self._lost)
        credit = trio.Semaphore(INITIAL_CREDIT)
        context = Context(
            request_id=call.request_id,
            deadline=call.deadline,
            metadata=call.metadata,
            sequence=call.sequence,
        )
        exchange = _LocalExchange(listener, context.cancel_scope, credit)
        self._nursery.start_soon(self._run, call, offer, context, exchange, credit)
        return exchange

    def lost(self, reason: str) -> None:
        """Take no more calls."""
        self._lost = reason
        self._files.close()

    async def _run(
        self,
        call: Call,
        offer: Offer,
        context: Context,
        exchange: Exchange,
        credit: trio.Semaphore,
    ) -> None:
        raw = [bytes(part) for part in call.raw]  # aligned, as on the link
        incoming = Incoming(call.head, raw, context, ClientRegions({}, self._files))
        ending = Ending(error=Cancelled("the app is stopping"))
        try:
            runner = self._runners[offer.name]
            ending = await runner.run(incoming, partial(_emit, exchange, credit))
            if ending.last is not None:
                exchange.deliver(_reply(*ending.last))
        finally:
            exchange.end(ending.batch, ending.error)


async def _emit(
    exchange: Exchange, credit: trio.Semaphore, head: bytes, raw: Sequence[Buffer]
) -> None:
    await credit.acquire()
    exchange.deliver(_reply(head, raw))


def _reply(head: bytes, raw: Sequence[Buffer]) -> Reply:
    # Copied as on the link: the handler may go on to use its arrays.
    return Reply((join_response(head, raw),))
