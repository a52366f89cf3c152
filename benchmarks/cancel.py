"""From a client's cancel to the handler's cancelled scope, beside grpc.aio.

The client is grpcio's, so that its own part is in all figures; what remains differs by server.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import grpc  # type: ignore[import-untyped]

from benchmarks import h2load, servers
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load
from benchmarks.messages import hang_request, stream_request
from benchmarks.notes import Notes, open_notes
from benchmarks.pacing import Stream
from benchmarks.prepared import STREAM_INFER
from benchmarks.servers import Server
from benchmarks.tables import number, table

CALLS = 300
"""Calls that are cancelled in a round."""
OTHERS = 64
"""Streams that run meanwhile, 50 messages a second each."""

_GAP = 0.02
_FOREVER = 1_000_000
_TIMEOUT = 10.0
_SETTLE = 0.5
"""Seconds for all others to begin."""


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    ways = {"alone": False, f"{OTHERS} others": True}
    starting = (servers.replica(*servers.WORK), servers.grpc_aio())
    with servers.all_of(*starting) as running, open_notes() as notes:
        times: dict[tuple[str, Server], list[float]] = {
            (way, server): [] for way in ways for server in running
        }
        for turn in range(rounds + 1):
            print(f"round {turn} of {rounds}", file=sys.stderr)
            for (way, server), latencies in times.items():
                with _others(server) if ways[way] else nullcontext():
                    taken = _cancel(server, notes)
                if turn:
                    latencies += taken
    rows = [
        [way, server.name, *map(number, _percentiles(latencies))]
        for (way, server), latencies in times.items()
    ]
    print(table(["in flight", "server", "p50 ms", "p99 ms"], rows))


def _percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    percentiles = statistics.quantiles(latencies, n=100)
    return percentiles[49], percentiles[98]


def _cancel(server: Server, notes: Notes) -> list[float]:
    """Milliseconds of each call, one after the other."""
    request = hang_request(notes.path)
    with grpc.insecure_channel(server.address) as channel:
        hang = channel.stream_stream(STREAM_INFER)
        return [_cancel_one(hang(iter([request]), timeout=_TIMEOUT), notes) for _ in range(CALLS)]


def _cancel_one(call: grpc.Call, notes: Notes) -> float:
    try:
        # It has begun, and says no more.
        next(call)
    except grpc.RpcError as error:
        raise CannotMeasure(f"a call did not hang: {error.details()}") from error
    began = time.monotonic_ns()
    call.cancel()
    return (notes.next() - began) / 1e6


@contextmanager
def _others(server: Server) -> Iterator[None]:
    """Streams of other calls, on another connection."""
    load = Load(stream_request(Stream(_FOREVER, _GAP)), OTHERS, OTHERS, STREAM_INFER)
    with h2load.sending(server, load):
        time.sleep(_SETTLE)
        yield
