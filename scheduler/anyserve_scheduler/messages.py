"""Between the messages of the wire and the values of the scheduler."""

from __future__ import annotations

from anyserve_protos.anyserve import v1 as pb

from anyserve import load
from anyserve.capability import Attribute, Capability
from anyserve.errors import InvalidArgument
from anyserve.replica.reports import attribute_messages
from anyserve_scheduler.fleet import OfferView, ReplicaView
from anyserve_scheduler.links import Link
from anyserve_scheduler.registration import Registration, Report

_FAILURE_LIMIT = 300
"""Characters of a failed load's reason that are kept."""


def registration_of(message: pb.Register) -> Registration:
    """What a replica registers with; raises `InvalidArgument` for an offer that can't be."""
    return Registration(
        id=message.replica_id,
        instance=message.instance,
        address=message.address,
        offers=[offer_of(offer) for offer in message.offers],
        epoch=message.epoch,
        draining=message.draining,
    )


def report_of(message: pb.Report) -> Report:
    """What a replica reports; raises `InvalidArgument` for an offer that can't be."""
    return Report(
        sequence=message.sequence,
        loads={named.name: load.from_message(named.usage) for named in message.loads},
        offers=[offer_of(offer) for offer in message.offers],
        removed=message.removed,
        draining=message.draining,
        full=message.full,
    )


def offer_of(message: pb.Offer) -> OfferView:
    """An offer; raises `InvalidArgument` for one that can't be."""
    return OfferView(
        capability=Capability(message.name, attributes_of(message.attributes), message.version),
        load=load.from_message(message.usage),
        queue_limit=message.queue_limit,
        decoupled=message.decoupled,
        loadable=message.loadable,
        on_demand=message.on_demand,
        loading=message.loading,
        failures=message.failures,
        failure=message.failure[:_FAILURE_LIMIT],
        resumable=message.resumable,
    )


def attributes_of(messages: dict[str, pb.Attribute]) -> dict[str, Attribute]:
    """Attributes of a capability; raises `InvalidArgument` for one without a value."""
    return {name: _attribute(name, message) for name, message in messages.items()}


def _attribute(name: str, message: pb.Attribute) -> Attribute:
    for value in (message.text, message.integer, message.number, message.flag):
        if value is not None:
            return value
    raise InvalidArgument(f"attribute {name!r:.80} has no value")


def fleet_replica(view: ReplicaView, link: Link | None, now: float) -> pb.FleetReplica:
    """One replica, for those who look at the fleet.

    link: what the scheduler holds of it; None between its registration and its link.
    """
    return pb.FleetReplica(
        replica_id=view.id,
        epoch=view.epoch,
        address=view.address,
        state=view.state,
        attached=link is not None and link.attachment is not None,
        silent_seconds=max(0.0, now - view.reported),
        offers=[_offer(view.offers[name]) for name in sorted(view.offers)],
        delegations=0 if link is None else link.delegations,
        last_error="" if link is None else link.last_error,
    )


def _offer(offer: OfferView) -> pb.Offer:
    return pb.Offer(
        name=offer.capability.name,
        attributes=attribute_messages(offer.capability.attributes),
        version=offer.capability.version,
        usage=load.to_message(offer.load),
        queue_limit=offer.queue_limit,
        decoupled=offer.decoupled,
        loadable=offer.loadable,
        on_demand=offer.on_demand,
        loading=offer.loading,
        failures=offer.failures,
        failure=offer.failure,
        resumable=offer.resumable,
    )
