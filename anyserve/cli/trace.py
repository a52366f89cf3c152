"""`anyserve trace`: record what runs on this machine, all that is of one fleet in one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
from anyserve_actors import Recording, chrome_trace
from anyserve_protos.anyserve import v1 as pb

from anyserve.admin import client
from anyserve.cli.arguments import complain
from anyserve.cli.running import run_async
from anyserve.cli.tree import WHERE
from anyserve.errors import AnyServeError
from anyserve.transport.channel import Channel

_EPILOG = """\
examples:
  anyserve trace 127.0.0.1:8001
  anyserve trace 127.0.0.1:8000 -o fleet.json

Of a scheduler, its replicas on this machine are recorded too. One on another machine has its
admin socket there: forward it by ssh -L, and name it as unix:/path.
"""


@attrs.frozen
class _Target:
    """A replica or a scheduler that is recorded."""

    name: str
    channel: Channel
    status: pb.StatusReply
    recordings: list[Recording] = attrs.field(factory=list)


def add_command(commands: Any) -> None:
    """Add `trace` to the command line."""
    parser = commands.add_parser(
        "trace",
        help="record a trace of running replicas and schedulers",
        description="Record replicas with their workers, and schedulers, into one file; open it at"
        " ui.perfetto.dev.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help=WHERE)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to record (5)")
    parser.add_argument("-o", "--output", type=Path, default=Path("trace.json"))
    parser.set_defaults(run=partial(run_async, _trace))


async def _trace(options: argparse.Namespace) -> int:
    """Record, and write the file; the exit status: 1 also where a part is missing."""
    async with AsyncExitStack() as channels:
        targets = [await _target(channels, address) for address in options.addresses]
        targets += await _replicas(channels, targets)
        if sys.stderr.isatty():
            names = ", ".join(target.name for target in targets)
            print(f"recording {names} for {options.seconds:g} s", file=sys.stderr)
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(_record, target, options.seconds, len(targets) == 1)
    recordings = [recording for target in targets for recording in target.recordings]
    if not recordings:
        return 1
    data = await trio.to_thread.run_sync(chrome_trace, recordings)
    await trio.Path(options.output).write_bytes(data)
    print(f"{options.output}: {len(data)} bytes; open it at ui.perfetto.dev")
    return 0 if all(target.recordings for target in targets) else 1


async def _target(channels: AsyncExitStack, address: str) -> _Target:
    channel = await channels.enter_async_context(client.open_admin(address))
    return _Target(address, channel, await client.status(channel))


async def _replicas(channels: AsyncExitStack, targets: Iterable[_Target]) -> list[_Target]:
    """The replicas of the schedulers that were named, as far as they are of this machine."""
    named = {target.status.replica_id for target in targets}
    found = []
    for target in targets:
        for id, address in sorted(target.status.fleet.items()):
            if id in named:
                continue
            try:
                replica = await _target(channels, address)
            except (AnyServeError, OSError):
                replica = None
            if replica is not None and replica.status.replica_id == id:
                found.append(replica)
            else:
                complain(f"replica {id} at {address} is not on this machine: its part is missing")
    return found


async def _record(target: _Target, seconds: float, alone: bool) -> None:
    """Record one; what goes wrong costs its part and no other."""
    try:
        target.recordings.extend(await client.record(target.channel, seconds))
    except AnyServeError as error:
        complain(error if alone else f"{target.name}: {error}")
