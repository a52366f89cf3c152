"""`anyserve fleet`: a scheduler's replicas, what they offer and how they do."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from typing import Any

import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.cli.arguments import place, say, seconds
from anyserve.cli.fleet_views import as_json, table
from anyserve.cli.running import run_async
from anyserve.errors import AnyServeError, Unavailable
from anyserve.transport.channel import Channel
from anyserve.transport.trio_client import open_channel

_FLEET = "/anyserve.v1.Scheduler/Fleet"
_ANSWER_TIMEOUT = 10.0
_CLEAR = "\x1b[H\x1b[2J"
_WIDTH = 100
"""Columns where there is no terminal to ask."""


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
    parser.add_argument("--json", action="store_true", help="print it as JSON, in one line each")
    parser.set_defaults(run=partial(run_async, _show, interrupted=0))


async def _show(options: argparse.Namespace) -> None:
    """Show the fleet, once or until interrupted."""
    async with open_channel(options.address) as channel:
        say(_shown(await _ask(channel), options))
        while options.watch:
            await trio.sleep(options.every)
            say(await _watched(channel, options))


async def _watched(channel: Channel, options: argparse.Namespace) -> str:
    """The fleet, or why it is not seen now: a scheduler that is watched may start again."""
    try:
        shown = _shown(await _ask(channel), options)
    except AnyServeError as error:
        shown = json.dumps({"error": error.message}) if options.json else error.message
    if options.json:
        return shown
    return (_CLEAR if sys.stdout.isatty() else "\n") + shown


def _shown(fleet: pb.FleetReply, options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(as_json(fleet))
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    return "\n".join(table(fleet, width))


async def _ask(channel: Channel) -> pb.FleetReply:
    with trio.move_on_after(_ANSWER_TIMEOUT):
        return await channel.unary(_FLEET, pb.FleetRequest(), pb.FleetReply)
    raise Unavailable(f"{channel.address} did not answer within {_ANSWER_TIMEOUT:g} s")
