"""One run: clients, scheduler, replicas and faults from the first arrival to an idle fleet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from random import Random
from typing import Any

import attrs
import trio
from anyserve_protos import inference as kserve

from anyserve.capability import NEED_PREFIX, Attribute, Capability
from anyserve.errors import AnyServeError, Cancelled, DeadlineExceeded
from anyserve.replica.handback import MODEL_INFER, MODEL_STREAM_INFER
from anyserve_scheduler.demand import Verb
from anyserve_scheduler.simulate.arrivals import Arrival, arrivals
from anyserve_scheduler.simulate.faults import Faults
from anyserve_scheduler.simulate.ledger import ANSWERED, Ledger, Request
from anyserve_scheduler.simulate.loop import Loop
from anyserve_scheduler.simulate.network import CLIENTS, SCHEDULER, Network
from anyserve_scheduler.simulate.policies import policy_of
from anyserve_scheduler.simulate.replica import Replica
from anyserve_scheduler.simulate.scenario import Scenario
from anyserve_scheduler.simulate.scheduler import Scheduler
from anyserve_scheduler.simulate.summary import Result, bins, mean, quantile

_WARM_UP = 1.0
"""Seconds, an interval and some messages, that replicas have to register before anything else
happens."""
_STALL = 600.0
"""Seconds without an outcome after which what is open will never have one."""
_MARGIN = 30.0
"""Seconds that the fleet has to become idle, beside those that can be told."""


def run(
    scenario: Scenario, policy: str = "prefix", trace: Iterable[Arrival] | None = None
) -> Result:
    """Run it; not from within a Trio run, since it is one.

    policy: as `policy_of` takes it, which raises `ValueError`.
    trace: the requests, in the order of their times, where they are not those of its traffic.
    Raises `ScenarioError` for a trace file that can't be read.
    """
    loop = Loop()

    async def main() -> Result:
        requests = arrivals(scenario) if trace is None else trace
        return _Run(scenario, policy, requests, loop).run()

    return trio.run(main, clock=loop)


class _Run:
    """All parts of one run."""

    def __init__(
        self, scenario: Scenario, policy: str, requests: Iterable[Arrival], loop: Loop
    ) -> None:
        self._scenario = scenario
        self._policy = policy
        self._loop = loop
        self._ledger = Ledger()
        seed = scenario.seed
        self._network = Network(
            loop, self._ledger, scenario.latency, scenario.jitter, Random(f"{seed}/network")
        )
        specs = [spec for group in scenario.groups for spec in group.offers]
        self._scheduler = Scheduler(
            self._network,
            policy_of(policy),
            scenario.terms,
            scenario.demand,
            any(spec.on_demand for spec in specs),
            Random(f"{seed}/router"),
        )
        self._replicas = {
            id: Replica(
                id,
                {offer.capability.name: offer for offer in group.offers},
                self._network,
                self._ledger,
                self._scheduler,
            )
            for group in scenario.groups
            for id in group.ids
        }
        self._ids = list(self._replicas)
        self._scheduler.replicas = self._replicas
        self._network.nodes = {
            **self._replicas,
            SCHEDULER: self._scheduler,
            CLIENTS: _Clients(),
        }
        self._faults = Faults(
            loop, self._network, self._scheduler, self._replicas, Random(f"{seed}/faults")
        )
        self._places = Random(f"{seed}/places")
        self._begin = _WARM_UP + scenario.terms.interval + 4 * self._network.longest
        self._arrivals = iter(requests)
        self._number = 0
        self._exhausted = False

    def run(self) -> Result:
        began = time.perf_counter()
        self._scheduler.start()
        starts = Random(f"{self._scenario.seed}/starts")
        for replica in self._replicas.values():
            # Not at once, or all would report at once for ever.
            self._loop.at(starts.random() * self._scenario.terms.interval, replica.start)
        self._faults.plan(
            tuple(attrs.evolve(f, at=f.at + self._begin) for f in self._scenario.faults)
        )
        self._expect()
        self._serve()
        over = self._loop.now
        self._settle()
        return self._result(over, time.perf_counter() - began)

    def _serve(self) -> None:
        """Until every request has come to an end."""
        ledger = self._ledger
        while not (self._exhausted and not ledger.open):
            before = ledger.outcomes.total(), self._number
            self._loop.run(
                self._loop.now + _STALL, over=lambda: self._exhausted and not ledger.open
            )
            if self._exhausted and before == (ledger.outcomes.total(), self._number):
                for number in ledger.open:
                    ledger.violated(f"request {number} has never ended")
                return

    def _settle(self) -> None:
        """Until the fleet is idle, and then until it is no more."""
        scenario, ledger = self._scenario, self._ledger
        self._faults.stop()
        longest = max((fault.duration for fault in scenario.faults), default=0.0)
        way = self._network.longest
        self._loop.run(self._loop.now + longest + scenario.terms.lease + 4 * way + _MARGIN)
        for replica in self._replicas.values():
            for leak in replica.leaks():
                ledger.violated(f"{replica.id} {leak}")
            if replica.process is not None:
                replica.process.attachment.end()
        self._loop.run(self._loop.now + scenario.terms.lease + way + _MARGIN)
        front = self._scheduler.front
        for leak in ["the scheduler is down after all faults"] if front is None else front.leaks():
            ledger.violated(leak)

    # Clients.

    def _expect(self) -> None:
        """Have the next request made when it is time."""
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._exhausted = True
            return
        begin = self._begin
        arrival = attrs.evolve(arrival, at=arrival.at + begin, gives_up=arrival.gives_up + begin)
        self._loop.at(arrival.at, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        self._expect()
        self._number += 1
        request = Request(self._number, arrival, arrival.at + arrival.traffic.deadline)
        self._ledger.arrived(request)
        body = _body(arrival.traffic.need, request.number)
        path = MODEL_INFER if arrival.traffic.answers == 1 else MODEL_STREAM_INFER
        client = _Client(request, self._ledger, self._loop)
        drawn = self._places.randrange(len(self._ids))
        if arrival.direct:
            # A client keeps its deadline itself, since a replica may hang; the scheduler may not.
            replica = self._replicas[self._ids[drawn]]
            client.cancel = replica.call(CLIENTS, path, body, client, request.deadline).cancel
            if request.deadline < math.inf:
                self._loop.at(request.deadline, client.expire)
        else:
            try:
                client.cancel = self._scheduler.serve(
                    path, body, request.deadline, arrival.blocks, arrival.session, client
                ).cancel
            except AnyServeError as error:
                client.on_end(error)
        if arrival.gives_up < math.inf:
            self._loop.at(arrival.gives_up, client.give_up)

    def _result(self, over: float, wall: float) -> Result:
        ledger, scheduler = self._ledger, self._scheduler
        waits, times, costs = sorted(ledger.waits), sorted(ledger.times), sorted(scheduler.costs)
        duration = over - self._begin
        return Result(
            scenario=self._scenario.name,
            policy=self._policy,
            requests=self._number,
            replicas=len(self._replicas),
            outcomes=dict(sorted(ledger.outcomes.items())),
            duration=duration,
            goodput=ledger.outcomes[ANSWERED] / duration if duration > 0 else 0.0,
            wait_mean=mean(waits),
            wait_p50=quantile(waits, 0.5),
            wait_p99=quantile(waits, 0.99),
            time_p50=quantile(times, 0.5),
            time_p99=quantile(times, 0.99),
            hit_rate=ledger.hits / ledger.blocks if ledger.blocks else 0.0,
            delegated=ledger.delegated,
            retried=scheduler.retried,
            resumed=scheduler.resumed,
            loads=scheduler.actions[Verb.LOAD],
            unloads=scheduler.actions[Verb.UNLOAD],
            decisions=len(costs),
            decision_mean=mean(costs),
            decision_p99=quantile(costs, 0.99),
            wall=wall,
            events=self._loop.handled,
            broken=ledger.broken,
            violations=tuple(ledger.violations),
            digest=ledger.digest,
            bins=bins(ledger.ended, ledger.waits, self._begin, over),
        )


@attrs.define(eq=False)
class _Client:
    """The client of one request."""

    _request: Request
    _ledger: Ledger
    _loop: Loop
    cancel: Callable[[], None] = attrs.field(default=lambda: None)

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Client`."""
        self._ledger.received(self._request, messages)

    def on_end(self, error: AnyServeError | None, metadata: object = None) -> None:
        """See `Client` and `Answers`."""
        self._ledger.end(self._request, error, self._loop.now)

    def expire(self) -> None:
        """Its deadline has come."""
        self._leave(DeadlineExceeded("the client waits no longer"))

    def give_up(self) -> None:
        """It does not want the answer any more."""
        self._leave(Cancelled("the client gave up"))

    def _leave(self, error: AnyServeError) -> None:
        if self._request.outcome is None:
            self.cancel()
            self._ledger.end(self._request, error, self._loop.now)


class _Clients:
    """The clients' side of the network."""

    def receive(self, handle: Callable[..., None], *values: Any) -> None:
        """See `Node`."""
        handle(*values)


def _body(need: Capability, number: int) -> bytes:
    """A ModelInferRequest: the fields that all of its kind have, then its id."""
    id = str(number).encode()
    return _template(need.name, tuple(need.attributes.items())) + b"\x1a%c%b" % (len(id), id)


@lru_cache(256)
def _template(name: str, attributes: tuple[tuple[str, Attribute], ...]) -> bytes:
    parameters = {NEED_PREFIX + key: _parameter(value) for key, value in attributes}
    return bytes(kserve.ModelInferRequest(model_name=name, parameters=parameters))


def _parameter(value: Attribute) -> kserve.InferParameter:
    match value:
        case bool():
            return kserve.InferParameter(bool_param=value)
        case int():
            return kserve.InferParameter(int64_param=value)
        case float():
            return kserve.InferParameter(double_param=value)
        case _:
            return kserve.InferParameter(string_param=value)
