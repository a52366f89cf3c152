"""What the scheduler's front door adds: CPU µs for a request, and for a message of a stream.

python -m benchmarks.scheduler_gateway
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import h2load, servers
from benchmarks.echo import FLOATS, echo_size
from benchmarks.h2load import Load
from benchmarks.messages import call, echo_request
from benchmarks.prepared import INFER, MESSAGES
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server
from benchmarks.streams import case

ROUNDS = 3
CALLS = {1: 1_000, 64: 4_000}
"""Calls of a round, by how many are in flight."""
STREAMS = {"back to back": 64, "5 ms, in step": 32, "5 ms, each alone": 32}


def run(rounds: int = ROUNDS) -> None:
    """Print the tables: the scheduler's own CPU time beside that of whole servers."""
    h2load.check_installed()
    request = echo_request(FLOATS)
    with front_door(*servers.ECHO) as door, servers.grpc_aio() as other:
        servers.await_answer(partial(call, door.address, INFER, request))
        cases = [
            Case(f"{in_flight} in flight", server, Load(request, in_flight, calls), size)
            for in_flight, calls in CALLS.items()
            for server, size in [(each, echo_size(each, request)) for each in (door, other)]
        ]
        print_table(measure(cases, rounds), baseline=other)
    with front_door(*servers.WORK) as door, servers.grpc_aio() as other:
        cases = [
            case(what, server, calls, capability)
            for what, calls in STREAMS.items()
            for server, capability in ((door, "stream"), (door, "resumable"), (other, "stream"))
        ]
        print_table(measure(cases, rounds), baseline=other, unit="message")
    print(f"A stream is {MESSAGES} messages.")


@contextmanager
def front_door(*options: str) -> Iterator[Server]:
    """A scheduler on the servers' core; its only replica, with `options`, is on the load's."""
    with servers.scheduler(name="front door") as door:
        replica = servers.replica(
            *options, "--in-process", "--scheduler", door.address, cores=str(servers.LOAD_CORE)
        )
        with replica:
            time.sleep(1)  # it registers
            yield door


if __name__ == "__main__":
    servers.take_load_core()
    run()
