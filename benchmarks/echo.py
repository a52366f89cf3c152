"""A small echo through a worker and in process, at 1, 16 and 64 in flight, beside grpc.aio."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import h2load, servers
from benchmarks.h2load import Load
from benchmarks.messages import call, check_echo, echo_request
from benchmarks.prepared import INFER
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server

FLOATS = 25
"""A tensor of 100 bytes."""
CALLS = {1: 1500, 16: 4000, 64: 4000}
"""Calls of a round, by how many are in flight."""


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    with servers.echoes() as running:
        print_table(measure(cases(running), rounds), baseline=running[-1])


def cases(running: Sequence[Server]) -> list[Case]:
    """The echo on each of the servers; raises `CannotMeasure` where one does not answer."""
    request = echo_request(FLOATS)
    sizes = {server: echo_size(server, request) for server in running}
    return [
        Case(f"{in_flight} in flight", server, Load(request, in_flight, calls), size)
        for in_flight, calls in CALLS.items()
        for server, size in sizes.items()
    ]


def echo_size(server: Server, request: bytes) -> int:
    """See that a server echoes the request; the size of its reply."""
    if server.parses:
        return check_echo(server.address, request)
    return len(call(server.address, INFER, request))
