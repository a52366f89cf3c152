"""An app that runs in this process: the executor of `--in-process` and of the test client."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from anyserve.app import App
from anyserve.burst import burst
from anyserve.errors import AnyServeError, Cancelled
from anyserve.link.frames import INITIAL_CREDIT, Buffer
from anyserve.messages import Context
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Listener, Reply, WorkerLost
from anyserve.waiting import Waiter
from anyserve.worker.runner import Ending, HandlerRunner, Incoming
from anyserve.worker.shared import ClientRegions

_CREDIT_BATCH = INITIAL_CREDIT // 2
"""Responses that there must be room for before a handler that was held goes on."""


class _LocalExchange(Exchange):
    """A call that runs as a task of this process, and the `Sink` of its responses."""

    def __init__(self, listener: Listener, executor: LocalExecutor, capability: str) -> None:
        super().__init__(listener)
        self.capability = capability
        self.scope = trio.CancelScope()
        self.credit = INITIAL_CREDIT
        self._executor = executor
        self._more = Waiter()
        self._sent: list[Reply] = []
        self._ending: Ending | None = None

    def on_cancelled(self) -> None:
        self.scope.cancel()

    def consumed(self) -> None:
        self.credit += 1
        if self.credit >= _CREDIT_BATCH:
            self._more.wake()

    async def until_credit(self) -> None:
        """See `Sink`."""
        while not self.credit:
            await self._more.wait()

    def send(self, response: Sequence[Buffer]) -> None:
        """See `Sink`."""
        self.credit -= 1
        if not self._sent:
            self._executor.sent(self)
        self._sent.append(_reply(response))

    def finish(self, ending: Ending) -> None:
        """The handler has ended; the listener hears so after what was sent."""
        self._ending = ending
        if not self._sent:
            self.settle()

    def settle(self) -> None:
        """Tell the listener what there is to tell, unless that was lost."""
        sent, self._sent = self._sent, []
        if self.ended:
            return
        for reply in sent:
            self.deliver(reply)
        ending = self._ending
        if ending is not None:
            if ending.last is not None:
                self.deliver(_reply(ending.last))
            self.end(ending.batch, ending.error)

    def lose(self, error: AnyServeError) -> None:
        """Have the handler stop, and tell the listener without waiting for that."""
        self.scope.cancel()
        self.end(error=error)


def _reply(response: Sequence[Buffer]) -> Reply:
    # Copied as on the link: the handler may go on to use its arrays.
    return Reply((b"".join(response),))


class LocalExecutor:
    """Runs handlers as tasks of a nursery, with the semantics of a worker and no link."""

    def __init__(self, app: App, nursery: trio.Nursery, name: str = "local") -> None:
        self._name = name
        self._runners = {handler.offer.name: HandlerRunner(handler) for handler in app.handlers}
        self._nursery = nursery
        self._files = RegionFiles()
        self._open: set[_LocalExchange] = set()
        self._due: list[_LocalExchange] = []
        self._lost: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def running(self) -> list[str]:
        """The capabilities of the calls whose handlers have not ended."""
        return [exchange.capability for exchange in self._open]

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """See `Executor`: starts the handler."""
        if self._lost is not None:
            raise WorkerLost(self._lost)
        exchange = _LocalExchange(listener, self, offer.name)
        self._open.add(exchange)
        self._nursery.start_soon(self._run, call, exchange, name=f"call {offer.name}")
        return exchange

    def sent(self, exchange: _LocalExchange) -> None:
        """A call has responses: they go out with all others of this turn of the loop."""
        if not self._due:
            self._nursery.start_soon(self._deliver, name="responses")
        self._due.append(exchange)

    def lost(self, reason: str) -> None:
        """Take no more calls; those that run are cancelled, and end with `WorkerLost` at once."""
        self._lost = reason
        for exchange in tuple(self._open):
            exchange.lose(WorkerLost(reason))
        self._close_files()

    async def _deliver(self) -> None:
        due, self._due = self._due, []
        with burst:
            for exchange in due:
                exchange.settle()

    async def _run(self, call: Call, exchange: _LocalExchange) -> None:
        ending = Ending(error=Cancelled("the app is stopping"))
        try:
            incoming = self._incoming(call, exchange.scope)
            ending = await self._runners[exchange.capability].run(incoming, exchange)
        finally:
            self._open.remove(exchange)
            if self._open:
                exchange.finish(ending)
            else:
                # With nothing else to be run there is nothing to wait for.
                with burst:
                    exchange.finish(ending)
                self._close_files()

    def _close_files(self) -> None:
        """Close the clients' files, where no handler will use them any more."""
        if self._lost is not None and not self._open:
            self._files.close()

    def _incoming(self, call: Call, scope: trio.CancelScope) -> Incoming:
        context = Context(
            request_id=call.request_id,
            deadline=call.deadline,
            metadata=call.metadata,
            sequence=call.sequence,
            cancel_scope=scope,
        )
        raw = [bytes(part) for part in call.raw]  # aligned, as on the link
        regions = {name: RegionRef(**value) for name, value in call.regions.items()}
        return Incoming(call.head, raw, context, ClientRegions(regions, self._files))
