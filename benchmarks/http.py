"""A small POST through the HTTP server alone, beside Hypercorn's Trio worker and a gRPC echo."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import echo, h2load, servers
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load, Post
from benchmarks.messages import echo_request
from benchmarks.peer import Peer
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server

BODY = b'{"model": "decode", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}'
CALLS = {1: 2000, 64: 8000}
"""Requests of a round, by how many are in flight, each on a connection of its own."""
_PATH = "/echo"


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    request = echo_request(echo.FLOATS)
    with _http_servers() as running, servers.grpc_aio() as grpc:
        size = echo.echo_size(grpc, request)
        cases = []
        for in_flight, calls in CALLS.items():
            what = f"{in_flight} in flight"
            post = Post(BODY, in_flight, calls, _PATH)
            cases += [Case(what, server, post, len(BODY)) for server in running]
            cases.append(Case(what, grpc, Load(request, in_flight, calls), size))
        print_table(measure(cases, rounds), baseline=grpc)


@contextmanager
def _http_servers() -> Iterator[list[Server]]:
    """Ours, and Hypercorn where it can be had here."""
    with ExitStack() as stack:
        running = [stack.enter_context(servers.http())]
        try:
            peer = Peer("Hypercorn", "hypercorn", check=_check)
            running.append(stack.enter_context(peer.running()))
        except CannotMeasure as error:
            print(f"left out: {error}\n", flush=True)
        yield running


def _check(address: str) -> None:
    try:
        with urllib.request.urlopen(f"http://{address}{_PATH}", BODY, timeout=5) as answer:
            if answer.read() != BODY:
                raise CannotMeasure("it echoes something else")
    except OSError as error:
        raise CannotMeasure(str(error)) from error
