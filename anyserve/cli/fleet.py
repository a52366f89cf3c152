"""`anyserve fleet`: a scheduler's replicas, what they offer and how they do."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.cli.arguments import complain, place, seconds
from anyserve.errors import AnyServeError, Unavailable, innermost
from anyserve.transport.channel import Channel
from anyserve.transport.trio_client import open_channel

_FLEET = "/anyserve.v1.Scheduler/Fleet"
_ANSWER_TIMEOUT = 10.0
_CLEAR = "\x1b[H\x1b[2J"
_HEADINGS = (
    *("replica", "state", "heard", "address", "capability"),
    *("running", "queued", "slots", "wait", "tokens/s", "handed back", "last error"),
)


def add_command(commands: Any) -> None:
    """Add `fleet` to the command line."""
    parser = commands.add_parser(
        "fleet",
        help="show a scheduler's replicas",
        description="Show the replicas of a fleet: state, capabilities, load, last errors.",
    )
    parser.add_argument("address", type=place, help="where the scheduler serves")
    parser.add_argument("--watch", action="store_true", help="show it again and again")
    parser.add_argument(
        "--every", type=seconds, default=1.0, metavar="SECONDS", help="so often (1)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the fleet, once or until interrupted; the exit status."""
    status = 0
    try:
        trio.run(_show, options)
    except* AnyServeError as errors:
        complain(innermost(errors))
        status = 1
    except* KeyboardInterrupt:
        pass
    return status


async def _show(options: argparse.Namespace) -> None:
    async with open_channel(options.address) as channel:
        print("\n".join(table(await _ask(channel))), flush=True)
        while options.watch:
            await trio.sleep(options.every)
            lines = await _watched(channel)
            print((_CLEAR if sys.stdout.isatty() else "\n") + "\n".join(lines), flush=True)


async def _watched(channel: Channel) -> list[str]:
    """The table, or why there is none for now: a scheduler that is watched may start again."""
    try:
        return table(await _ask(channel))
    except AnyServeError as error:
        return [error.message]


async def _ask(channel: Channel) -> pb.FleetReply:
    with trio.move_on_after(_ANSWER_TIMEOUT):
        return await channel.unary(_FLEET, pb.FleetRequest(), pb.FleetReply)
    raise Unavailable(f"{channel.address} did not answer within {_ANSWER_TIMEOUT:g} s")


def table(fleet: pb.FleetReply) -> list[str]:
    """The lines to show: a row for each capability of each replica."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for replica in fleet.replicas:
        rows += _rows(replica)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    replicas = len(fleet.replicas)
    lines = [f"anyserve {fleet.version}, {replicas} replica{'' if replicas == 1 else 's'}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    if fleet.refused:
        lines.append(f"{fleet.refused} registrations refused, the last one of {fleet.last_refusal}")
    return lines


def _rows(replica: pb.FleetReplica) -> list[tuple[str, ...]]:
    state = replica.state if replica.attached else f"{replica.state}, no link"
    heard = f"{replica.silent_seconds:.1f} s ago"
    first = (replica.replica_id, state, heard, replica.address)
    last = (str(replica.delegations), " ".join(replica.last_error.split()))
    offers = [_offer(offer) for offer in replica.offers] or [("nothing", *("",) * 5)]
    blank = ("",) * len(first), ("",) * len(last)
    return [
        (*(first if index == 0 else blank[0]), *offer, *(last if index == 0 else blank[1]))
        for index, offer in enumerate(offers)
    ]


def _offer(offer: pb.Offer) -> tuple[str, ...]:
    attributes = ", ".join(f"{k}={_value(v)}" for k, v in sorted(offer.attributes.items()))
    name = f"{offer.name}[{attributes}]" if attributes else offer.name
    load = offer.usage or pb.Load()
    wait = f"{load.expected_wait_seconds * 1000:.0f} ms"
    speed = f"{load.tokens_per_second:.1f}" if load.tokens_per_second else ""
    if offer.loadable:
        name += " (not loaded)"
    return (name, str(load.running), str(load.queued), str(load.slots), wait, speed)


def _value(attribute: pb.Attribute) -> str:
    for value in (attribute.text, attribute.integer, attribute.number, attribute.flag):
        if value is not None:
            return str(value)
    return ""
