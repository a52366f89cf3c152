"""`anyserve tree` and `anyserve trace`: look into a replica that runs on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import AnyServeError, NotFound
from anyserve.replica.admin_socket import socket_path
from anyserve.transport.address import TcpAddress, parse_address
from anyserve.transport.channel import Channel
from anyserve.transport.trio_client import open_channel

_ADMIN = "/anyserve.v1.Admin"


def add_commands(commands: Any) -> None:
    """Add `tree` and `trace` to the command line."""
    where = "where the replica serves, as 127.0.0.1:8001, or its admin socket, as unix:/path"
    tree = commands.add_parser(
        "tree",
        help="show a replica's live actors",
        description="Show every actor of a replica on this machine: state, age, mailbox, restarts.",
    )
    tree.add_argument("address", help=where)
    tree.set_defaults(run=lambda options: _run(_tree, options))
    trace = commands.add_parser(
        "trace",
        help="record a trace of a running replica",
        description="Record a replica and its workers; open the file at ui.perfetto.dev.",
    )
    trace.add_argument("address", help=where)
    trace.add_argument("--seconds", type=float, default=5.0, help="how long to record (5)")
    trace.add_argument("-o", "--output", type=Path, default=Path("trace.json"))
    trace.set_defaults(run=lambda options: _run(_trace, options))


def _run(command: Any, options: argparse.Namespace) -> int:
    try:
        trio.run(command, options)
    except (AnyServeError, OSError) as error:
        print(f"anyserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


@asynccontextmanager
async def _admin(text: str) -> AsyncIterator[Channel]:
    """A channel to the admin socket of the replica at an address."""
    address = parse_address(text)
    if isinstance(address, TcpAddress):
        path = socket_path(address.port)
        if not path.exists():
            raise NotFound(f"no replica of this user serves on port {address.port} here")
        text = f"unix:{path}"
    async with open_channel(text) as channel:
        yield channel


async def _tree(options: argparse.Namespace) -> None:
    async with _admin(options.address) as channel:
        status = await channel.unary(f"{_ADMIN}/Status", pb.StatusRequest(), pb.StatusReply)
        reply = await channel.unary(f"{_ADMIN}/Tree", pb.TreeRequest(), pb.TreeReply)
    assert reply.root is not None
    print(f"anyserve {status.version}, process {status.pid}, serves {status.address}")
    rows = [("actor", "state", "age", "mailbox", "restarts", "")]
    _add_rows(reply.root, "", "", rows)
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[5]]).rstrip())


def _add_rows(
    node: pb.Node, lead: str, below: str, rows: list[tuple[str, str, str, str, str, str]]
) -> None:
    details = ", ".join(f"{key}={value}" for key, value in node.details.items())
    error = f"last error: {node.last_error}" if node.last_error else ""
    mailbox = f"{node.mailbox_depth}/{node.mailbox_capacity}"
    notes = "; ".join(note for note in (details, error) if note)
    name = lead + node.name
    rows.append((name, node.state, _age(node.age_seconds), mailbox, str(node.restarts), notes))
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        branch, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
        _add_rows(child, below + branch, below + rest, rows)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


async def _trace(options: argparse.Namespace) -> None:
    if sys.stderr.isatty():
        print(f"recording for {options.seconds:g} s", file=sys.stderr)
    request = pb.TraceRequest(seconds=options.seconds)
    size = 0
    async with (
        _admin(options.address) as channel,
        channel.stream(f"{_ADMIN}/Trace", pb.TraceRequest, pb.TraceChunk) as call,
    ):
        await call.send(request, end=True)
        chunk = await call.recv()
        async with await trio.open_file(options.output, "wb") as file:
            while chunk is not None:
                size += await file.write(chunk.json)
                chunk = await call.recv()
    print(f"{options.output}: {size} bytes; open it at ui.perfetto.dev")
