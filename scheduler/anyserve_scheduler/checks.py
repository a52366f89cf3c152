"""What the registry refuses to believe: bounds of registrations and reports.

What is impossible raises `InvalidArgument`, which names the field. A load that is only larger
than any that matters is cut to a bound instead, since a replica that exaggerates still serves.
Capabilities have been checked where they were made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import attrs

from anyserve.errors import InvalidArgument
from anyserve.load import Load
from anyserve.transport.address import TcpAddress, parse_address
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.registration import Registration, Report

Number = TypeVar("Number", int, float)

MOST_OFFERS = 1_024
"""Offers of one replica."""
MOST_REQUESTS = 1_000_000
"""Requests that one offer may be said to run, to queue or to have slots for."""
LONGEST_WAIT = 3_600.0
"""Seconds; what is said to take longer, or for ever, counts as this long."""
MOST_TOKENS_PER_SECOND = 1e9

_ID = re.compile(r"[!-~]{1,255}")
_LONGEST_INSTANCE = 64
_LONGEST_ADDRESS = 255


def check_registration(registration: Registration) -> None:
    """Raise `InvalidArgument` unless a replica can say this of itself; its offers apart."""
    if not _ID.fullmatch(registration.id):
        raise InvalidArgument(
            f"id {registration.id!r:.300} is not 1 to 255 printable ASCII characters, no spaces"
        )
    if not 0 < len(registration.instance) <= _LONGEST_INSTANCE:
        raise InvalidArgument(
            f"instance is {len(registration.instance)} bytes long, not 1 to {_LONGEST_INSTANCE}"
        )
    if len(registration.address) > _LONGEST_ADDRESS:
        raise InvalidArgument(f"address is longer than {_LONGEST_ADDRESS} characters")
    address = parse_address(registration.address)
    if isinstance(address, TcpAddress) and address.port == 0:
        raise InvalidArgument(f"address {registration.address!r} has no port to connect to")
    if registration.epoch < 0:
        raise InvalidArgument(f"epoch is {registration.epoch}")


def checked_offers(offers: Iterable[OfferView]) -> dict[str, OfferView]:
    """`offers` by name, their loads cut to the bounds.

    Raises `InvalidArgument` where one is impossible or is offered twice.
    """
    checked: dict[str, OfferView] = {}
    for offer in offers:
        name = offer.capability.name
        if name in checked:
            raise InvalidArgument(f"offers: {name} is offered twice")
        if offer.queue_limit < 0:
            raise InvalidArgument(f"offers: {name}: queue_limit is {offer.queue_limit}")
        load = checked_load(offer.load, name)
        checked[name] = offer if load is offer.load else attrs.evolve(offer, load=load)
        _check_number(len(checked))
    return checked


def changed_offers(known: Mapping[str, OfferView], report: Report) -> dict[str, OfferView]:
    """What a replica offers after `report`, which follows on what is `known`: by name.

    Raises `InvalidArgument` for what is impossible, and for the load of what is not offered.
    """
    offers = {} if report.full else dict(known)
    for name in report.removed:
        offers.pop(name, None)
    if report.offers:
        offers.update(checked_offers(report.offers))
        _check_number(len(offers))
    for name, load in report.loads.items():
        old = offers.get(name)
        if old is None:
            raise InvalidArgument(f"loads: {name!r:.300} is not offered")
        load = checked_load(load, name)
        offers[name] = OfferView(
            old.capability,
            load,
            old.queue_limit,
            old.decoupled,
            old.loadable,
            old.on_demand,
            old.loading,
            old.failures,
            old.failure,
            old.resumable,
        )
    return offers


def checked_load(load: Load, name: str) -> Load:
    """`load` itself, or cut to the bounds; raises `InvalidArgument` where it is impossible.

    name: of the capability, for the message.
    """
    if (
        0 <= load.running <= MOST_REQUESTS
        and 0 <= load.queued <= MOST_REQUESTS
        and 0 <= load.slots <= MOST_REQUESTS
        and 0 <= load.expected_wait <= LONGEST_WAIT
        and 0 <= load.tokens_per_second <= MOST_TOKENS_PER_SECOND
    ):
        return load
    return Load(
        _cut(load.running, MOST_REQUESTS, name, "running"),
        _cut(load.queued, MOST_REQUESTS, name, "queued"),
        _cut(load.slots, MOST_REQUESTS, name, "slots"),
        _cut(load.expected_wait, LONGEST_WAIT, name, "expected_wait"),
        _cut(load.tokens_per_second, MOST_TOKENS_PER_SECOND, name, "tokens_per_second"),
    )


def _check_number(offers: int) -> None:
    if offers > MOST_OFFERS:
        raise InvalidArgument(f"offers: there are more than {MOST_OFFERS}")


def _cut(value: Number, most: Number, name: str, field: str) -> Number:
    if value >= 0:  # not a number is not
        return min(value, most)
    raise InvalidArgument(f"load of {name}: {field} is {value}")
