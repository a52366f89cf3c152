"""`anyserve tree`: the live actors of a replica or a scheduler of this machine."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from anyserve_protos.anyserve import v1 as pb

from anyserve.admin import client
from anyserve.cli.running import run_async

WHERE = "where it serves, as 127.0.0.1:8001, or its admin socket, as unix:/path"


def add_command(commands: Any) -> None:
    """Add `tree` to the command line."""
    parser = commands.add_parser(
        "tree",
        help="show the live actors of a replica or a scheduler",
        description="Show every actor of a replica or a scheduler on this machine: state, age,"
        " mailbox, restarts.",
    )
    parser.add_argument("address", help=WHERE)
    parser.set_defaults(run=partial(run_async, _show))


async def _show(options: argparse.Namespace) -> None:
    async with client.open_admin(options.address) as channel:
        status = await client.status(channel)
        reply = await client.tree(channel)
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
