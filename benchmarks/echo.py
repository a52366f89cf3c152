"""A small echo through a worker, at 1, 16 and 64 in flight, beside grpc.aio."""

from __future__ import annotations

from benchmarks import h2load, servers
from benchmarks.h2load import Load
from benchmarks.messages import check_echo, echo_request
from benchmarks.rounds import Case, measure, print_table

FLOATS = 25
"""A tensor of 100 bytes."""
CALLS = {1: 1500, 16: 4000, 64: 4000}
"""Calls of a round, by how many are in flight."""


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    request = echo_request(FLOATS)
    with servers.echoes() as running:
        sizes = {server: check_echo(server.address, request) for server in running}
        cases = [
            Case(f"{in_flight} in flight", server, Load(request, in_flight, calls), size)
            for in_flight, calls in CALLS.items()
            for server, size in sizes.items()
        ]
        print_table(measure(cases, rounds), baseline=running[-1])
