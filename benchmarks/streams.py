"""32 streams of 256 small messages each, through a worker, beside grpc.aio.

Back to back, many messages share a write and a turn of the loop. Paced, as tokens come, each costs
more: in step, as the texts of one engine's batch are, or each stream at its own moments.
"""

from __future__ import annotations

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
    "5 ms, in step": (Stream(MESSAGES, GAP, in_step=True), 64),
    "5 ms, each alone": (Stream(MESSAGES, GAP), 64),
}
"""Streams, and the calls of a round."""


def case(what: str, server: Server, calls: int | None = None) -> Case:
    """One kind of stream on a server; raises `CannotMeasure` where it is answered wrongly.

    calls: other than those of `WORK`.
    """
    wanted, usual = WORK[what]
    request = stream_request(wanted)
    size = check_stream(server.address, request, MESSAGES)
    load = Load(request, IN_FLIGHT, calls or usual, STREAM_INFER, MESSAGES)
    return Case(what, server, load, size)


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    starting = (servers.replica(*servers.WORK), servers.transport(), servers.grpc_aio())
    with servers.all_of(*starting) as running:
        ours, transport, theirs = running
        cases = [case(what, server) for what in WORK for server in (ours, theirs)]
        # It parses no request, so it knows nothing of pace.
        cases.insert(1, case("back to back", transport))
        print_table(measure(cases, rounds), baseline=theirs, unit="message")
