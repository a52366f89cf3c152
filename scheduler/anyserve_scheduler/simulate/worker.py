"""A replica's worker in simulation: it takes time for a request, and caches prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

from anyserve.errors import Cancelled
from anyserve.offers import Offer
from anyserve.replica.exchange import Call, Exchange, Listener, Reply
from anyserve_scheduler.simulate import answers
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.loop import Loop
from anyserve_scheduler.simulate.scenario import OfferSpec


class PrefixCache:
    """The blocks of prompts that one capability of one replica has, the oldest ones dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def take(self, blocks: tuple[bytes, ...]) -> int:
        """How many of a prompt's first blocks are there; all of them are afterwards."""
        hits = 0
        for block in blocks:
            if block not in self._blocks:
                break
            hits += 1
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)
        return hits


class Work(Exchange):
    """One request that is run: its answers, of which there is one at least, at even distances."""

    def __init__(
        self,
        listener: Listener,
        answers: Iterable[bytes],
        when_due: Callable[[Callable[[], None]], None],
        soon: Callable[[Callable[[], None]], None],
    ) -> None:
        """when_due, soon: call what they are given when the next answer is due, or at once."""
        super().__init__(listener)
        self._answers = iter(answers)
        self._when_due = when_due
        self._soon = soon
        self._next = next(self._answers)

    def on_cancelled(self) -> None:
        self._soon(self._stopped)

    def consumed(self) -> None:
        """It never waits for its answers to be taken."""

    def go_on(self) -> None:
        """Begin, or go on after an answer."""
        self._when_due(self._answer)

    def _answer(self) -> None:
        """The handler gives its next answer, and returns with the last."""
        if self.ended:
            return
        self.deliver(Reply((self._next,)))
        following = next(self._answers, None)
        if following is None:
            self.end()
        else:
            self._next = following
            self.go_on()

    def _stopped(self) -> None:
        """The handler returns, since nobody wants the answer."""
        self.end(error=Cancelled("the request was cancelled"))


class SimulatedWorker:
    """An `Executor` that runs nothing: it is the passing of time that serves a request."""

    def __init__(
        self,
        name: str,
        offers: dict[str, OfferSpec],
        loop: Loop,
        ledger: Ledger,
        act: Callable[[Callable[[], None]], None],
    ) -> None:
        """act: does something in the replica's process, which may be stopped meanwhile."""
        self.slowness = 1.0
        """How many times longer than usual what is begun now takes."""
        self._name = name
        self._offers = offers
        self._caches = {key: PrefixCache(offer.cache) for key, offer in offers.items()}
        self._loop = loop
        self._ledger = ledger
        self._act = act

    @property
    def name(self) -> str:
        return self._name

    def submit(self, call: Call, offer: Offer, listener: Listener) -> Exchange:
        """See `Executor`. A request that nobody waits for any more takes its time, too."""
        request = self._ledger.open.get(int(call.request_id))
        seconds, count = 0.0, 1
        said: list[bytes] = [answers.message(0)]
        if request is not None:
            spec, arrival = self._offers[offer.name], request.arrival
            count = arrival.traffic.answers
            if count > 1 and spec.resumable:
                begin = answers.said_before(call.head)
                said = [answers.token(each, each == count - 1) for each in range(begin, count)]
            else:
                said = [answers.message(each) for each in range(count)]
            hits = self._caches[offer.name].take(arrival.blocks) if arrival.blocks else 0
            missed = len(arrival.blocks) - hits
            seconds = (arrival.service / spec.speed + missed * spec.block_time) * self.slowness
            self._ledger.was_begun(
                request, self._loop.now, len(arrival.blocks), hits, spec.resumable
            )
        after = self._loop.after
        work = Work(
            listener,
            said,
            partial(after, seconds / count, self._act),
            partial(after, 0.0, self._act),
        )
        work.go_on()
        return work

    def lost(self, reason: str) -> None:
        """It goes with its replica's process, never alone."""
