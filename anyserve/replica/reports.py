"""What a replica tells its scheduler: what it offers, at which load, and what of it is new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
from anyserve_protos.anyserve import v1 as pb

from anyserve.capability import Attribute
from anyserve.load import Load, to_message
from anyserve.offers import Offer
from anyserve.replica.policy import expected_wait
from anyserve.replica.pool import Pool, State

_INTEGERS = range(-(1 << 63), 1 << 63)


@attrs.frozen
class OnDemand:
    """How far a capability is that is offered on demand."""

    loaded: bool
    loading: bool = False
    failures: int = 0
    """Times in a row that it could not be loaded."""
    failure: str = ""
    """Why it could not, the last time."""


@attrs.frozen
class Standing:
    """What a replica offers at one moment."""

    offers: Mapping[str, Offer]
    """By name, those that a request sent now would find a worker for, and those on demand."""
    loads: Mapping[str, Load]
    """Of each that is loaded."""
    draining: bool
    on_demand: Mapping[str, OnDemand] = attrs.field(factory=dict)
    """Those of the offers that are."""

    def differs(self, other: Standing) -> bool:
        """Whether more is different than the load, so that it should be told at once."""
        return (
            self.draining is not other.draining
            or self.offers != other.offers
            or self.on_demand != other.on_demand
        )


def standing(pools: Iterable[Pool], draining: bool, now: float) -> Standing:
    """What the pools offer at the time `now`, on the clock of all calls."""
    offers: dict[str, Offer] = {}
    loads: dict[str, Load] = {}
    on_demand: dict[str, OnDemand] = {}
    for pool in pools:
        name = pool.offer.name
        if pool.serving:
            loads[name] = _load(pool, now)
        elif not pool.on_demand or pool.state is State.READY:
            continue  # what is ready without a worker will have one again soon
        offers[name] = pool.offer
        if pool.on_demand:
            loading = pool.state is State.LOADING
            on_demand[name] = OnDemand(pool.serving, loading, pool.failures, pool.failure)
    return Standing(offers, loads, draining, on_demand)


def _load(pool: Pool, now: float) -> Load:
    seats = [seat for seat in pool.seats if seat.slots]
    slots = sum(seat.slots for seat in seats)
    # What others have a seat's server do takes the slots that are left there, and else waits.
    taken = sum(min(seat.others, seat.slots - seat.running) for seat in seats)
    queued = pool.waiting + sum(seat.others for seat in seats) - taken
    free = any(seat.running + seat.others < seat.slots for seat in seats)
    wait = 0.0 if free else expected_wait(queued, slots, pool.service_time.mean)
    # Of requests that have one response each, the other figures tell as much.
    tokens = pool.rate.per_second(pool.given, now) if pool.offer.decoupled else 0.0
    return Load(pool.running + taken, queued, slots, wait, round(tokens, 1))


def report(sequence: int, told: Standing | None, now: Standing) -> pb.Report:
    """What is new since `told`; all there is where that is None."""
    if told is None:
        return pb.Report(
            sequence=sequence, full=True, draining=now.draining, offers=all_offers(now)
        )
    fresh = [
        name
        for name, offer in now.offers.items()
        if told.offers.get(name) != offer or told.on_demand.get(name) != now.on_demand.get(name)
    ]
    return pb.Report(
        sequence=sequence,
        draining=now.draining,
        offers=[_offer(now, name) for name in fresh],
        removed=[name for name in told.offers if name not in now.offers],
        loads=[
            pb.NamedLoad(name=name, usage=to_message(load))
            for name, load in now.loads.items()
            if name not in fresh and told.loads.get(name) != load
        ],
    )


def all_offers(now: Standing) -> list[pb.Offer]:
    """All that the replica offers, with the load of each that is loaded."""
    return [_offer(now, name) for name in now.offers]


def _offer(now: Standing, name: str) -> pb.Offer:
    offer, load, on_demand = now.offers[name], now.loads.get(name), now.on_demand.get(name)
    message = pb.Offer(
        name=name,
        attributes=attribute_messages(offer.capability.attributes),
        version=offer.version,
        usage=None if load is None else to_message(load),
        queue_limit=offer.queue,
        decoupled=offer.decoupled,
        resumable=offer.resumable,
    )
    if on_demand is not None:
        message.on_demand = True
        message.loadable = not on_demand.loaded
        message.loading = on_demand.loading
        message.failures, message.failure = on_demand.failures, on_demand.failure
    return message


def attribute_messages(attributes: Mapping[str, Attribute]) -> dict[str, pb.Attribute]:
    """The attributes of a capability, by name."""
    return {name: _attribute(value) for name, value in attributes.items()}


def _attribute(value: Attribute) -> pb.Attribute:
    match value:
        case bool():
            return pb.Attribute(flag=value)
        case str():
            return pb.Attribute(text=value)
        case int() if value in _INTEGERS:
            return pb.Attribute(integer=value)
        case _:
            return pb.Attribute(number=float(value))
