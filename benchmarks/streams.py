"""32 streams of 256 small messages each, through a worker and in process, beside grpc.aio.

Back to back, many messages share a write and a turn of the loop. Paced, as tokens come, each costs
more: in step, as the texts of one engine's batch are, or each stream at its own moments.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import h2load, servers
from benchmarks.h2load import Load
from benchmarks.messages import check_stream, stream_request
from benchmarks.pacing import Stream
from benchmarks.prepared import MESSAGES, STREAM_INFER
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server

IN_FLIGHT = 32
GAP = 0.005
"""Seconds between the messages of a paced stream."""
BACK_TO_BACK = Stream(MESSAGES)
WORK = {
    "back to back": (BACK_TO_BACK, 160),
    "5 ms, in step": (Stream(MESSAGES, GAP, in_step=True), 32),
    "5 ms, each alone": (Stream(MESSAGES, GAP), 32),
}
"""Streams, and the calls of a round."""


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    starting = (
        servers.replica(*servers.WORK),
        servers.in_process(*servers.WORK),
        servers.transport(),
        servers.grpc_aio(),
    )
    with servers.all_of(*starting) as running:
        print_table(measure(cases(running), rounds), baseline=running[-1], unit="message")


def cases(running: Sequence[Server]) -> list[Case]:
    """Every kind of stream on each of the servers that has it."""
    return [
        case(what, server)
        for what, (stream, _) in WORK.items()
        for server in running
        if server.streams and (server.parses or stream == BACK_TO_BACK)
    ]


def case(what: str, server: Server, calls: int | None = None, capability: str = "stream") -> Case:
    """One kind of stream on a server; raises `CannotMeasure` where it is answered wrongly.

    calls: other than those of `WORK`. capability: one that is like `stream`.
    """
    wanted, usual = WORK[what]
    request = stream_request(wanted, capability)
    size = check_stream(server.address, request, MESSAGES)
    load = Load(request, IN_FLIGHT, calls or usual, STREAM_INFER, MESSAGES)
    name = what if capability == "stream" else f"{what}, {capability}"
    return Case(name, server, load, size, baseline=what)
