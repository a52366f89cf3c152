"""The same work on the servers that people would pick instead, side by side.

A peer that can't be had on the machine is named and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import echo, h2load, proc, servers, streams, tensors
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load
from benchmarks.messages import echo_request
from benchmarks.peer import Peer
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server
from benchmarks.tables import number, table

PEERS = (
    Peer("MLServer", "mlserver"),
    Peer("KServe", "kserve", streams=False),
    Peer("Triton, PyTriton", "triton"),
)
LARGE_CALLS = 30
"""Calls of a round, 4 MiB each."""
_MIB = 1 << 20


def run(rounds: int) -> None:
    """Print a table of calls, one of streams, and one of memory."""
    h2load.check_installed()
    large = echo_request(tensors.FLOATS)
    with _running() as running:
        idle = {server: _pss(server) for server in running}
        calls = echo.cases(running) + [
            Case("4 MiB, 1 in flight", server, Load(large, 1, LARGE_CALLS), size)
            for server in running
            for size in (echo.echo_size(server, large),)
        ]
        streamed = streams.cases(running)
        results = measure([*calls, *streamed], rounds)
        memory = [
            [server.name, number(before / _MIB), number(_pss(server) / _MIB)]
            for server, before in idle.items()
        ]
    print_table({case: results[case] for case in calls}, baseline=running[0])
    print()
    print_table({case: results[case] for case in streamed}, baseline=running[0], unit="message")
    print()
    print(table(["PSS MiB", "before the first call", "after the last"], memory))


def _pss(server: Server) -> int:
    return sum(proc.memory(pid).pss for pid in server.processes.values())


@contextmanager
def _running() -> Iterator[list[Server]]:
    """All servers that can be had here; the first is the one to compare with."""
    ours = (servers.replica(*servers.WORK), servers.transport())
    with ExitStack() as stack:
        running = [
            stack.enter_context(server)
            for server in (servers.grpc_aio(), servers.grpc_threads(), *ours)
        ]
        for peer in PEERS:
            try:
                running.append(stack.enter_context(peer.running()))
            except CannotMeasure as error:
                print(f"left out: {error}\n", flush=True)
        yield running
