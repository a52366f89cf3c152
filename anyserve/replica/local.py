"""An app that runs in this process: the executor of `--in-process` and of the test client."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import trio

from anyserve.app import App
from anyserve.errors import AnyServeError
from anyserve.link.frames import INITIAL_CREDIT, Buffer
from anyserve.messages import Context
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Asked, Call, Exchange, Listener, Reply, WorkerLost
from anyserve.waiting import Waiter
from anyserve.worker.calls import Answered, Called, HandlerCalls
from anyserve.worker.runner import Ending, HandlerRunner, Incoming, cut_off
from anyserve.worker.shared import ClientRegions
from anyserve.worker.tasks import Tasks

_CREDIT_BATCH = INITIAL_CREDIT // 2
"""Responses that there must be room for before a handler that was held goes on."""


@attrs.frozen
class _CopiedAnswers:
    """What a handler has called, for the handler."""

    _answered: Answered

    def on_reply(self, reply: Reply) -> None:
        """See `exchange.Answered`."""
        self._answered.on_response(reply.pieces)
        reply.release()

    def on_end(self, error: AnyServeError | None) -> None:
        """See `exchange.Answered`."""
        self._answered.on_end(error)


class _LocalExchange(Exchange):
    """A call that runs in this process: the `Job` of a task, and the `Sink` of its responses."""

    scope: trio.CancelScope

    def __init__(
        self, listener: Listener, executor: LocalExecutor, runner: HandlerRunner, call: Call
    ) -> None:
        super().__init__(listener)
        self.runner = runner
        self.call = call
        self.credit = INITIAL_CREDIT
        self._executor = executor
        self._more = Waiter()

    async def run(self) -> None:
        """See `Job`."""
        call = self.call
        executor = self._executor
        caller = HandlerCalls(call.request_id, self._call)
        context = Context(
            call.request_id, call.deadline, call.metadata, call.sequence, self.scope, caller
        )
        ending: Ending | None = None
        try:
            ending = await self.runner.run(executor.incoming(call, context), self, self.scope)
        finally:
            caller.close()
            executor.forget(self)
            if ending is None:
                ending = cut_off(
                    self.scope, call.deadline, WorkerLost(f"worker {executor.name} is stopping")
                )
            if ending.last is not None:
                self.send(ending.last)
            self.end(ending.batch, ending.error)
            ending = None  # the traceback of its error leads back to this frame

    def _call(self, head: bytes, raw: Sequence[Buffer], once: bool, answered: Answered) -> Called:
        asked = Asked(head, [memoryview(bytes(part)) for part in raw], (), once)
        calls = self._executor.dispatcher.calls
        called = calls.request(self.call, asked, _CopiedAnswers(answered))
        called.start()
        return called

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
        if not self.ended:
            # Copied as on the link: the handler may go on to use its arrays.
            self.deliver(Reply((b"".join(response),)))

    def count(self, more: int, prompt: int) -> None:
        """See `Sink`."""
        self.on_tokens(more, prompt)


class LocalExecutor:
    """Runs handlers as tasks of a nursery, with the semantics of a worker and no link."""

    def __init__(
        self, app: App, nursery: trio.Nursery, dispatcher: Dispatcher, name: str = "local"
    ) -> None:
        """dispatcher: which runs what the handlers call."""
        self.dispatcher = dispatcher
        self._name = name
        self._handlers = {
            handler.offer.name: (
                HandlerRunner(handler),
                Tasks(nursery, f"call {handler.offer.name}"),
            )
            for handler in app.handlers
        }
        self._files = RegionFiles()
        self._no_regions = ClientRegions({}, self._files)
        self._open: set[_LocalExchange] = set()
        self._lost: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def running(self) -> list[str]:
        """The capabilities of the calls whose handlers have not ended."""
        # Copied in one step: the watchdog asks from its thread.
        return [exchange.runner.name for exchange in tuple(self._open)]

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """See `Executor`: starts the handler."""
        if self._lost is not None:
            raise WorkerLost(self._lost)
        runner, tasks = self._handlers[offer.name]
        exchange = _LocalExchange(listener, self, runner, call)
        self._open.add(exchange)
        tasks.start(exchange)
        return exchange

    def lost(self, reason: str) -> None:
        """Take no more calls; those that run are cancelled, and end with `WorkerLost` at once."""
        self._lost = reason
        for exchange in tuple(self._open):
            exchange.on_cancelled()
            exchange.end(error=WorkerLost(reason))
        self._close_files()

    def forget(self, exchange: _LocalExchange) -> None:
        """The handler of a call has ended."""
        self._open.remove(exchange)
        if self._lost is not None:
            self._close_files()

    def incoming(self, call: Call, context: Context) -> Incoming:
        """The request, ready for its handler."""
        raw = [bytes(part) for part in call.raw]  # aligned, as on the link
        regions = self._no_regions
        if call.regions:
            refs = {name: RegionRef(**value) for name, value in call.regions.items()}
            regions = ClientRegions(refs, self._files)
        return Incoming(call.head, raw, context, regions)

    def _close_files(self) -> None:
        """Close the clients' files, where no handler will use them any more."""
        if not self._open:
            self._files.close()
