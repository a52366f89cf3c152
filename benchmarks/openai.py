"""The OpenAI door alone, beside other gateways before one worker that has no model.

What counts is the gateway's own process: the scheduler, the replica without its worker, or what
stands in their place. Workers are on the load's core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median, quantiles

import attrs

from benchmarks import chats, echo, h2load, servers, streams
from benchmarks.chat_client import answer_size, first_token_times
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load, Post
from benchmarks.messages import echo_request
from benchmarks.peer import Peer
from benchmarks.prepared import MESSAGES
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server
from benchmarks.tables import number, table

CALLS = {1: 500, 64: 3_000}
"""Requests of a round, by how many are in flight; those by HTTP on a connection of their own."""
FIRST_TOKENS = 100
"""Of a round."""
_PACED = "5 ms, each alone"
_APP = ("--app", "benchmarks.chat_app:app")
_HTTP = ("--http", "0")
_check = partial(answer_size, tokens=chats.SHORT, stream=False)
_PEERS = (
    Peer("sglang-router", "sglang_router", check=_check),
    Peer("smg", "smg", check=_check),
)
_LITELLM = Peer("LiteLLM", "litellm_proxy", check=_check)


@attrs.frozen(eq=False)
class Gateway:
    """A gateway that runs."""

    server: Server
    """Its `address` is that of HTTP, and its `processes` are those that count."""
    share: int = 1
    """It is sent so many times fewer requests, since it is slow."""

    def chats(self, in_flight: int, *, stream: bool) -> Case:
        """Short chats, back to back."""
        size = answer_size(self.server.address, chats.SHORT, stream=stream)
        body = chats.body(chats.SHORT, stream=stream)
        load = Post(body, in_flight, CALLS[in_flight] // self.share, chats.PATH)
        what = "streamed chat" if stream else "chat"
        baseline = f"echo, {in_flight} in flight"
        return Case(f"{what}, {in_flight} in flight", self.server, load, size, baseline)

    def tokens(self) -> Case:
        """The tokens of long chats, each stream at its own moments."""
        size = answer_size(self.server.address, MESSAGES, stream=True)
        body = chats.body(MESSAGES, stream=True)
        count = streams.IN_FLIGHT
        return Case(_PACED, self.server, Post(body, count, count, chats.PATH, MESSAGES), size)


def run(rounds: int) -> None:
    """Print a table of chats, one of tokens, and one of the time to the first token."""
    h2load.check_installed()
    with servers.chat_worker() as worker, _gateways(worker) as gateways, servers.grpc_aio() as grpc:
        request = echo_request(echo.FLOATS)
        size = echo.echo_size(grpc, request)
        calls = [
            *(gateway.chats(1, stream=False) for gateway in gateways),
            Case("echo, 1 in flight", grpc, Load(request, 1, CALLS[1]), size),
            *(gateway.chats(64, stream=stream) for stream in (False, True) for gateway in gateways),
            Case("echo, 64 in flight", grpc, Load(request, 64, CALLS[64]), size),
        ]
        tokens = [*(gateway.tokens() for gateway in gateways), streams.case(_PACED, grpc)]
        results = measure([*calls, *tokens], rounds)
        first = _first_tokens([worker, *(gateway.server for gateway in gateways)], rounds)
    print_table({case: results[case] for case in calls}, baseline=grpc)
    print()
    print_table({case: results[case] for case in tokens}, baseline=grpc, unit="token")
    print()
    print(first)


def _first_tokens(running: Sequence[Server], rounds: int) -> str:
    """The table of the time to the first token; the first server stands behind the others."""
    times: dict[Server, list[float]] = {server: [] for server in running}
    body = chats.body(2, stream=True)
    for turn in range(rounds + 1):
        print(f"first tokens, round {turn} of {rounds}", file=sys.stderr)
        for server in running:
            found = first_token_times(server.address, body, FIRST_TOKENS)
            times[server] += [1e3 * time for time in found if turn]
    alone = median(times[running[0]])
    rows = [
        [
            server.name,
            number(median(each)),
            "" if server is running[0] else number(median(each) - alone),
            number(quantiles(each, n=100)[98]),
        ]
        for server, each in times.items()
    ]
    return table(["first token", "p50 ms", "added", "p99 ms"], rows)


@contextmanager
def _gateways(worker: Server) -> Iterator[list[Gateway]]:
    """Ours, and those others that can be had here."""
    with ExitStack() as stack:
        running = [Gateway(stack.enter_context(door)) for door in (replica(), _scheduler())]
        for peer in (*_PEERS, _LITELLM):
            try:
                server = stack.enter_context(peer.running(worker.address))
            except CannotMeasure as error:
                print(f"left out: {error}\n", flush=True)
            else:
                running.append(Gateway(server, share=10 if peer is _LITELLM else 1))
        yield running


@contextmanager
def replica(module: str = "anyserve.replica") -> Iterator[Server]:
    """A replica, without its worker."""
    with servers.replica(*_APP, *_HTTP, name="AnyServe, replica", module=module) as server:
        processes = dict(server.processes)
        servers.move_to_load(processes.pop("worker"))
        yield attrs.evolve(server, address=server.http, processes=processes)


@contextmanager
def _scheduler() -> Iterator[Server]:
    """A scheduler, without its replica."""
    with servers.scheduler(*_HTTP, name="AnyServe, scheduler") as server:
        options = (*_APP, "--in-process", "--scheduler", server.address)
        with servers.replica(*options, cores=str(servers.LOAD_CORE)):
            servers.await_answer(partial(_check, server.http))
            yield attrs.evolve(server, address=server.http)
