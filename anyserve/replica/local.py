"""An app that runs in this process: the executor behind the test client."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from anyserve.app import App
from anyserve.errors import Cancelled
from anyserve.link.frames import INITIAL_CREDIT, Buffer
from anyserve.messages import Context
from anyserve.objects.region_files import RegionFiles
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.waiting import Waiter
from anyserve.worker.runner import Ending, HandlerRunner, Incoming
from anyserve.worker.shared import ClientRegions


class _LocalExchange(Exchange):
    """A call that runs as a task of this process, and the `Sink` of its responses."""

    def __init__(self, listener: Listener, scope: trio.CancelScope) -> None:
        super().__init__(listener)
        self.credit = INITIAL_CREDIT
        self._scope = scope
        self._more = Waiter()

    def on_cancelled(self) -> None:
        self._scope.cancel()

    def consumed(self) -> None:
        self.credit += 1
        self._more.wake()

    async def until_credit(self) -> None:
        """See `Sink`."""
        while not self.credit:
            await self._more.wait()

    def send(self, response: Sequence[Buffer]) -> None:
        """See `Sink`."""
        self.credit -= 1
        # Copied as on the link: the handler may go on to use its arrays.
        self.deliver(Reply((b"".join(response),)))


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
        context = Context(
            request_id=call.request_id,
            deadline=call.deadline,
            metadata=call.metadata,
            sequence=call.sequence,
        )
        exchange = _LocalExchange(listener, context.cancel_scope)
        self._nursery.start_soon(self._run, call, offer, context, exchange)
        return exchange

    def lost(self, reason: str) -> None:
        """Take no more calls."""
        self._lost = reason
        self._files.close()

    async def _run(
        self, call: Call, offer: Offer, context: Context, exchange: _LocalExchange
    ) -> None:
        raw = [bytes(part) for part in call.raw]  # aligned, as on the link
        incoming = Incoming(call.head, raw, context, ClientRegions({}, self._files))
        ending = Ending(error=Cancelled("the app is stopping"))
        try:
            ending = await self._runners[offer.name].run(incoming, exchange)
            if ending.last is not None:
                exchange.send(ending.last)
        finally:
            exchange.end(ending.batch, ending.error)
