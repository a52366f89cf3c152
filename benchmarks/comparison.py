"""The same work on the servers that people would pick instead, side by side.

A peer that can't be had on the machine is named and left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import attrs

from benchmarks import echo, h2load, proc, servers, streams, tensors
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load
from benchmarks.messages import call, check_echo, echo_request
from benchmarks.peer import Peer
from benchmarks.prepared import INFER
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server
from benchmarks.tables import number, table

LARGE_CALLS = 30
"""Calls of a round, 4 MiB each."""
_MIB = 1 << 20


@attrs.frozen
class Contestant:
    """A server of the comparison, and what it can do."""

    server: AbstractContextManager[Server]
    streams: bool = True
    parses: bool = True
    """Whether it reads requests; one that does not has one stream, and echoes all."""


def contestants() -> list[Contestant]:
    """All of them; the first is the one to compare with."""
    return [
        Contestant(servers.grpc_aio()),
        Contestant(servers.grpc_threads()),
        Contestant(Peer("MLServer", "mlserver").running()),
        Contestant(Peer("KServe", "kserve").running(), streams=False),
        Contestant(Peer("Triton, PyTriton", "triton").running()),
        Contestant(servers.replica(*servers.WORK)),
        Contestant(servers.transport(), parses=False),
    ]


def run(rounds: int) -> None:
    """Print a table of calls, one of streams, and one of memory."""
    h2load.check_installed()
    with _running(contestants()) as running:
        baseline = next(iter(running))
        calls = [
            Case(what, server, Load(request, in_flight, count), _size(server, who, request))
            for what, request, in_flight, count in _calls()
            for server, who in running.items()
        ]
        streamed = [
            streams.case(what, server)
            for what, (stream, _) in streams.WORK.items()
            for server, who in running.items()
            if who.streams and (who.parses or stream == streams.BACK_TO_BACK)
        ]
        results = measure([*calls, *streamed], rounds)
        memory = [[server.name, number(_pss(server) / _MIB)] for server in running]
    print_table({case: results[case] for case in calls}, baseline)
    print()
    print_table({case: results[case] for case in streamed}, baseline, unit="message")
    print()
    print(table(["after that", "PSS MiB"], memory))


def _calls() -> Iterator[tuple[str, bytes, int, int]]:
    """The work in words, its request, how many in flight, and how many a round."""
    small = echo_request(echo.FLOATS)
    for in_flight, count in echo.CALLS.items():
        yield f"{in_flight} in flight", small, in_flight, count
    yield "4 MiB, 1 in flight", echo_request(tensors.FLOATS), 1, LARGE_CALLS


def _size(server: Server, contestant: Contestant, request: bytes) -> int:
    """See that the server answers; the size of its answer."""
    if contestant.parses:
        return check_echo(server.address, request)
    return len(call(server.address, INFER, request))


def _pss(server: Server) -> int:
    return sum(proc.memory(pid).pss for pid in server.processes.values())


@contextmanager
def _running(wanted: list[Contestant]) -> Iterator[dict[Server, Contestant]]:
    """Those that can be had here, all at the same time."""
    running: dict[Server, Contestant] = {}
    with ExitStack() as stack:
        for contestant in wanted:
            try:
                running[stack.enter_context(contestant.server)] = contestant
            except CannotMeasure as error:
                print(f"left out: {error}\n", flush=True)
        yield running
