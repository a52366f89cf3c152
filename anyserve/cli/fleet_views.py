"""A fleet as lines for people, and as JSON for scripts."""

from __future__ import annotations

import textwrap
from typing import Any

from anyserve_protos.anyserve import v1 as pb

_HEADINGS = ("running", "queued", "slots", "wait", "tokens/s")
_INDENT = "  "
_LEAST_NAME = 20
"""Columns that a capability has at least; in a terminal that is narrower, lines are broken."""
_ERROR_LINES = 3


def table(fleet: pb.FleetReply, width: int) -> list[str]:
    """The lines to show, `width` columns wide: each replica, and a row for each of its offers."""
    replicas = len(fleet.replicas)
    title = f"anyserve {fleet.version}, {replicas} replica{'' if replicas == 1 else 's'}"
    offers = [[_row(offer) for offer in replica.offers] for replica in fleet.replicas]
    rows = [("", *_HEADINGS), *(row for of_replica in offers for row in of_replica)]
    columns = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    room = width - len(_INDENT) - sum(columns) - 2 * len(columns)
    name_width = max(_LEAST_NAME, min(room, max(len(row[0]) for row in rows)))

    def line(row: tuple[str, ...]) -> str:
        name, *figures = row
        if len(name) > name_width:
            name = name[: name_width - 1] + "…"
        cells = [figure.rjust(size) for figure, size in zip(figures, columns, strict=True)]
        return (_INDENT + "  ".join([name.ljust(name_width), *cells])).rstrip()

    lines = [title]
    if len(rows) > 1:
        lines.append(line(rows[0]))
    for replica, of_replica in zip(fleet.replicas, offers, strict=True):
        lines += textwrap.wrap(_summary(replica), width, subsequent_indent=2 * _INDENT)
        lines += map(line, of_replica) if of_replica else [_INDENT + "offers nothing"]
        for offer in replica.offers:
            if offer.failures:
                lines += _error(f"{offer.name} could not be loaded: {offer.failure}", width)
        if replica.last_error:
            lines += _error(f"last error: {replica.last_error}", width)
    if fleet.refused:
        lines += textwrap.wrap(
            f"{fleet.refused} registrations refused, the last one of {fleet.last_refusal}", width
        )
    return lines


def _summary(replica: pb.FleetReplica) -> str:
    """A replica in a line, without what it offers."""
    state = replica.state if replica.attached else f"{replica.state}, no link"
    parts = [
        f"{replica.replica_id}: {state}",
        f"at {replica.address}",
        f"heard {replica.silent_seconds:.1f} s ago",
    ]
    if replica.delegations:
        parts.append(f"handed back {replica.delegations}")
    return ", ".join(parts)


def _row(offer: pb.Offer) -> tuple[str, ...]:
    load = offer.usage or pb.Load()
    speed = f"{load.tokens_per_second:.1f}" if load.tokens_per_second else ""
    figures = (str(load.running), str(load.queued), str(load.slots))
    return _name(offer), *figures, _wait(load.expected_wait_seconds), speed


def _name(offer: pb.Offer) -> str:
    attributes = ", ".join(f"{k}={_value(v)}" for k, v in sorted(offer.attributes.items()))
    name = f"{offer.name}[{attributes}]" if attributes else offer.name
    if offer.loading:
        return f"{name} (loading)"
    return f"{name} (not loaded)" if offer.loadable else name


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _error(message: str, width: int) -> list[str]:
    return textwrap.wrap(
        message,
        width,
        initial_indent=_INDENT,
        subsequent_indent=2 * _INDENT,
        max_lines=_ERROR_LINES,
        placeholder=" …",
    )


def _value(attribute: pb.Attribute) -> str | int | float | bool | None:
    for value in (attribute.text, attribute.integer, attribute.number, attribute.flag):
        if value is not None:
            return value
    return None


def as_json(fleet: pb.FleetReply) -> dict[str, Any]:
    """All that is known, with the names of the protocol; attributes are plain values."""
    return {
        "version": fleet.version,
        "uptime_seconds": fleet.uptime_seconds,
        "fleet_version": fleet.fleet_version,
        "replicas": [_replica_json(replica) for replica in fleet.replicas],
        "refused": fleet.refused,
        "last_refusal": fleet.last_refusal,
    }


def _replica_json(replica: pb.FleetReplica) -> dict[str, Any]:
    return {
        "replica_id": replica.replica_id,
        "epoch": replica.epoch,
        "address": replica.address,
        "state": replica.state,
        "attached": replica.attached,
        "silent_seconds": replica.silent_seconds,
        "offers": [_offer_json(offer) for offer in replica.offers],
        "delegations": replica.delegations,
        "last_error": replica.last_error,
    }


def _offer_json(offer: pb.Offer) -> dict[str, Any]:
    load = offer.usage or pb.Load()
    return {
        "name": offer.name,
        "attributes": {name: _value(value) for name, value in offer.attributes.items()},
        "version": offer.version,
        "running": load.running,
        "queued": load.queued,
        "slots": load.slots,
        "expected_wait_seconds": load.expected_wait_seconds,
        "tokens_per_second": load.tokens_per_second,
        "queue_limit": offer.queue_limit,
        "decoupled": offer.decoupled,
        "on_demand": offer.on_demand,
        "loadable": offer.loadable,
        "loading": offer.loading,
        "failures": offer.failures,
        "failure": offer.failure,
    }
