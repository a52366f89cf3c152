"""`anyserve explain`: where a scheduler would send a request, and why."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.capability import Attribute
from anyserve.cli.arguments import place, say, seconds
from anyserve.cli.running import run_async
from anyserve.errors import Unavailable
from anyserve.replica.reports import attribute_messages
from anyserve.transport.trio_client import open_channel

_EXPLAIN = "/anyserve.v1.Scheduler/Explain"
_ANSWER_TIMEOUT = 10.0


def add_command(commands: Any) -> None:
    """Add `explain` to the command line."""
    parser = commands.add_parser(
        "explain",
        help="say where a scheduler would send a request, and why",
        description="Say where a request would go now, and what spoke for and against each"
        " candidate. None is sent.",
        epilog="example: anyserve explain 127.0.0.1:8000 decode max_context=4096 --within 0.5",
    )
    parser.add_argument("address", type=place, help="where the scheduler serves")
    parser.add_argument("capability")
    parser.add_argument(
        "attributes",
        nargs="*",
        type=_attribute,
        metavar="NAME=VALUE",
        help="what else is needed, as model=smollm2",
    )
    parser.add_argument(
        "--version", default="", metavar="NUMBER", help="that of the capability (any)"
    )
    parser.add_argument(
        "--within", type=seconds, default=0.0, metavar="SECONDS", help="the deadline (none)"
    )
    parser.add_argument("--session", default="", help="as the request parameter `session`")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=partial(run_async, _explain))


async def _explain(options: argparse.Namespace) -> int:
    """Print the explanation; the exit status: 1 where the request would go nowhere."""
    reply = await _ask(options)
    say(reply.json if options.json else "\n".join(reply.reasons))
    return 0 if reply.replica_id else 1


async def _ask(options: argparse.Namespace) -> pb.ExplainReply:
    request = pb.ExplainRequest(
        name=options.capability,
        attributes=attribute_messages(dict(options.attributes)),
        budget_seconds=options.within,
        session=options.session,
        version=options.version,
    )
    with trio.move_on_after(_ANSWER_TIMEOUT):
        async with open_channel(options.address) as channel:
            return await channel.unary(_EXPLAIN, request, pb.ExplainReply)
    raise Unavailable(f"{options.address} did not answer within {_ANSWER_TIMEOUT:g} s")


def _attribute(text: str) -> tuple[str, Attribute]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        read = json.loads(value)
    except ValueError:
        return name, value
    return name, read if isinstance(read, bool | int | float) else value
