"""A small POST through the HTTP server alone, beside Hypercorn's Trio worker and a gRPC echo."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from benchmarks import echo, h2load, servers
from benchmarks.errors import CannotMeasure
from benchmarks.messages import echo_request
from benchmarks.peer import Peer
from benchmarks.servers import Server
from benchmarks.tables import number, table

BODY = b'{"model": "decode", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}'
CALLS = {1: 2000, 64: 8000}
"""Requests of a round, by how many are in flight, each on a connection of its own."""
_DATA = re.compile(r"\((\d+)\) data")
"""Bytes of bodies. h2load counts no answer of Hypercorn's as one, for want of a reason phrase."""
_RATE = re.compile(r"finished in .*?, ([\d.]+) req/s")


@attrs.frozen
class _Figures:
    cpu_us: float
    rate: float


def run(rounds: int) -> None:
    """Print the table."""
    h2load.check_installed()
    request = echo_request(echo.FLOATS)
    with _http_servers() as running, servers.grpc_aio() as grpc:
        size = echo.echo_size(grpc, request)
        found: dict[tuple[int, Server], list[_Figures]] = {}
        for turn in range(rounds + 1):
            print(f"round {turn} of {rounds}", file=sys.stderr)
            for in_flight, calls in CALLS.items():
                for server in running:
                    figures = _post(server, in_flight, calls)
                    found.setdefault((in_flight, server), []).append(figures)
                load = h2load.Load(request, in_flight, calls)
                other = h2load.run(grpc, load, size)
                figures = _Figures(other.total_cpu_us, other.rate)
                found.setdefault((in_flight, grpc), []).append(figures)
        cpu = {
            key: statistics.median(each.cpu_us for each in all[1:]) for key, all in found.items()
        }
        rows = [
            [
                f"{in_flight} in flight",
                server.name,
                number(cpu[in_flight, server]),
                number(cpu[in_flight, server] / cpu[in_flight, grpc]),
                number(statistics.median(each.rate for each in all[1:])),
            ]
            for (in_flight, server), all in found.items()
        ]
    print(table(["", "server", "CPU µs/req", f"× {grpc.name}", "req/s"], rows))


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
        with urllib.request.urlopen(f"http://{address}/echo", BODY, timeout=5) as answer:
            if answer.read() != BODY:
                raise CannotMeasure("it echoes something else")
    except OSError as error:
        raise CannotMeasure(str(error)) from error


def _post(server: Server, in_flight: int, calls: int) -> _Figures:
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(BODY)
        command = [
            *("h2load", "--h1", "--clients", str(in_flight), "--requests", str(calls)),
            *("--data", str(body), "--header", "content-type: application/json"),
            f"http://{server.address}/echo",
        ]
        before = sum(server.cpu_seconds().values())
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        after = sum(server.cpu_seconds().values())
    data, rate = _DATA.search(done.stdout), _RATE.search(done.stdout)
    if data is None or rate is None or int(data[1]) != calls * len(BODY):
        raise CannotMeasure(f"{server.name} did not answer all {calls} requests:\n{done.stdout}")
    return _Figures((after - before) / calls * 1e6, float(rate[1]))
