"""The transport alone: bytes through one process, beside grpc.aio with bytes and with protobuf."""

from __future__ import annotations

from benchmarks import echo, h2load, servers, streams
from benchmarks.rounds import measure, print_table


def run(rounds: int) -> None:
    """Print a table of calls and one of streams."""
    h2load.check_installed()
    starting = (servers.transport(), servers.grpc_aio_bytes(), servers.grpc_aio())
    with servers.all_of(*starting) as running:
        calls = echo.cases(running)
        streamed = [streams.case("back to back", server) for server in running]
        results = measure([*calls, *streamed], rounds)
    print_table({case: results[case] for case in calls}, baseline=running[-1])
    print()
    print_table({case: results[case] for case in streamed}, baseline=running[-1], unit="message")
