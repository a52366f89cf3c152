"""Whether the simulated fleet and a real one agree: goodput and mean wait for the same trace.

python -m benchmarks agreement

Four replicas behind a scheduler, all real processes, are sent the requests of a trace at its times,
and hold each as long as it says. The simulation is given the same trace, and what an idle fleet
has shown: the time that a request takes to its handler, and the time that it holds its slot beyond
what it asked for, until the next one's handler has begun.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs
import numpy as np
import trio
from anyserve_scheduler.simulate import Scenario
from anyserve_scheduler.simulate import run as simulate
from anyserve_scheduler.simulate.arrivals import Arrival, arrivals
from anyserve_scheduler.simulate.scenario import GroupSpec, OfferSpec, TrafficSpec

from anyserve.capability import Capability
from anyserve.client import Client, open_client
from anyserve.errors import AnyServeError
from benchmarks import servers
from benchmarks.agreement_app import QUEUE, SLOTS
from benchmarks.errors import CannotMeasure
from benchmarks.tables import number, table

REPLICAS = 4
REQUESTS = 1_000
SERVICE = 0.15
"""Mean seconds that a request holds its slot, exponential."""
_SHORT = 0.1
"""Seconds that those to an idle fleet do."""
DEADLINE = 2.0
LOADS = (0.6, 0.9)
"""Of the fleet's capacity, on the average."""
KINDS = {"poisson": "Poisson", "bursts": "in bursts"}
_PERIOD, _FACTOR = 10.0, 2.0
"""Of the bursts: all of a period's requests come in half of it."""
_SEEDS = 8
"""Simulations of a trace, which differ in what routing and network draw."""
_JITTER = 0.5
"""Of the simulated network: a message takes up to so much longer."""
_ALONE = 40
"""Requests to an idle fleet, one after the other."""
_BATCH = 12
"""Requests for each slot, all at once."""
_JOIN_TIMEOUT = 20.0


@attrs.frozen
class Figures:
    """What a trace came to."""

    goodput: float
    """Requests answered in time, a second."""
    wait: float
    """Mean seconds from arrival to the handler's start, of those."""


@attrs.frozen
class Idle:
    """What a fleet without load takes beyond what it is asked for, in seconds."""

    way: float
    """From a request's arrival to its handler's start."""
    late: float
    """That a request holds its slot too long, where others wait for it."""


@attrs.define
class _Outcome:
    """One real request that was answered; times on the machine's monotonic clock."""

    arrived: float
    began: float
    ended: float


def run() -> None:
    """Print the table."""
    with _fleet() as address:
        idle = trio.run(_idle, address)
        rows = []
        for kind, words in KINDS.items():
            for load in LOADS:
                print(f"{words}, at {load:.0%} of capacity", file=sys.stderr)
                scenario = _scenario(kind, load, idle)
                trace = list(arrivals(scenario))
                real = trio.run(_replay, address, trace)
                simulated = [_simulated(scenario, seed, trace, idle) for seed in range(_SEEDS)]
                rows.append(_row(f"{words}, {load:.0%}", real, simulated))
    heads = ["", "goodput: real", "simulated", "off", "mean wait, ms: real", "simulated", "off"]
    print(table(heads, rows))
    print(
        f"On an idle fleet a handler begins after {idle.way * 1e3:.2f} ms,"
        f" and a slot is held {idle.late * 1e3:.2f} ms too long."
    )


def _row(what: str, real: Figures, simulated: Sequence[Figures]) -> list[str]:
    goodput = statistics.mean(each.goodput for each in simulated)
    waits = [each.wait * 1e3 for each in simulated]
    wait = statistics.mean(waits)
    return [
        what,
        number(real.goodput),
        number(goodput),
        f"{goodput / real.goodput - 1:+.1%}",
        number(real.wait * 1e3),
        f"{number(wait)} ± {number(statistics.stdev(waits))}",
        f"{wait / (real.wait * 1e3) - 1:+.1%}",
    ]


def _scenario(kind: str, load: float, idle: Idle) -> Scenario:
    """The fleet, and a trace's traffic."""
    work = Capability("work")
    traffic = TrafficSpec(
        need=work,
        kind=kind,
        rate=load * REPLICAS * SLOTS / SERVICE,
        service=SERVICE,
        deadline=DEADLINE,
        period=_PERIOD,
        factor=_FACTOR,
    )
    offer = OfferSpec(work, slots=SLOTS, queue=QUEUE)
    return Scenario(
        name=f"{kind} {load}",
        groups=(GroupSpec("replica", REPLICAS, (offer,)),),
        traffic=(traffic,),
        requests=REQUESTS,
        latency=idle.way / (1 + _JITTER / 2),
        jitter=_JITTER,
    )


def _simulated(scenario: Scenario, seed: int, trace: Sequence[Arrival], idle: Idle) -> Figures:
    """The trace in simulation, its slots held as long as the real ones."""
    late = (attrs.evolve(each, service=each.service + idle.late) for each in trace)
    result = simulate(attrs.evolve(scenario, seed=seed), trace=late)
    return Figures(result.goodput, result.wait_mean)


async def _idle(address: str) -> Idle:
    """Ask for one request after the other, and for many at once, after some that warm it up."""
    alone: list[_Outcome] = []
    batch: list[_Outcome] = []

    async def ask(into: list[_Outcome]) -> None:
        outcome = await _ask(client, _SHORT, math.inf)
        if outcome is None:
            raise CannotMeasure("the idle fleet does not answer")
        into.append(outcome)

    async with open_client(address) as client:
        with trio.fail_after(_JOIN_TIMEOUT):
            while len(await client.capabilities()) == 0:  # noqa: ASYNC110 - replicas register
                await trio.sleep(0.1)
        for _ in range(2 * _ALONE):
            await ask(alone)
        async with trio.open_nursery() as nursery:
            for _ in range(REPLICAS * SLOTS * _BATCH):
                nursery.start_soon(ask, batch)
    elapsed = max(each.ended for each in batch) - min(each.began for each in batch)
    return Idle(
        way=statistics.mean(each.began - each.arrived for each in alone[_ALONE:]),
        late=elapsed / _BATCH - _SHORT,
    )


async def _replay(address: str, trace: Sequence[Arrival]) -> Figures:
    """Send the requests at their times, whatever has become of those before."""
    answered: list[_Outcome] = []
    last = 0.0

    async def send(client: Client, arrival: Arrival, start: float) -> None:
        nonlocal last
        await trio.sleep_until(start + arrival.at)
        outcome = await _ask(client, arrival.service, start + arrival.at + DEADLINE)
        if outcome is not None:
            answered.append(outcome)
        last = trio.current_time()

    async with open_client(address) as client:
        start = trio.current_time() + 1.0
        async with trio.open_nursery() as nursery:
            for arrival in trace:
                nursery.start_soon(send, client, arrival, start)
    return Figures(
        goodput=len(answered) / (last - start),
        wait=statistics.mean(each.began - each.arrived for each in answered),
    )


async def _ask(client: Client, seconds: float, deadline: float) -> _Outcome | None:
    """One request; None where it is not answered before its deadline, on Trio's clock."""
    arrived = time.monotonic()
    with trio.CancelScope(deadline=deadline):
        try:
            result = await client.infer("work", {"SECONDS": np.array([seconds])})
        except AnyServeError:
            return None
        return _Outcome(
            arrived,
            float(result.outputs["BEGAN"][0]),
            float(result.outputs["ENDED"][0]),
        )
    return None


@contextmanager
def _fleet() -> Iterator[str]:
    """A scheduler and its replicas, on both cores: its address."""
    with ExitStack() as running:
        address = running.enter_context(servers.scheduler(cores=servers.BOTH)).address
        for _ in range(REPLICAS):
            running.enter_context(
                servers.replica(
                    "--app",
                    "benchmarks.agreement_app:app",
                    "--scheduler",
                    address,
                    cores=servers.BOTH,
                )
            )
        yield address
