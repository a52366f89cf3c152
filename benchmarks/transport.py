"""The transport alone: bytes through one process, beside grpc.aio with bytes and with protobuf."""

from __future__ import annotations

from benchmarks import echo, h2load, servers, streams
from benchmarks.h2load import Load
from benchmarks.messages import call, check_echo, echo_request
from benchmarks.prepared import INFER
from benchmarks.rounds import Case, measure, print_table


def run(rounds: int) -> None:
    """Print a table of calls and one of streams; each is compared with protobuf's."""
    h2load.check_installed()
    request = echo_request(echo.FLOATS)
    starting = (
        servers.transport(),
        servers.grpc_aio("--bytes", name="grpc.aio, bytes"),
        servers.grpc_aio(),
    )
    with servers.all_of(*starting) as running:
        *of_bytes, baseline = running
        sizes = {server: len(call(server.address, INFER, request)) for server in of_bytes}
        sizes[baseline] = check_echo(baseline.address, request)
        calls = [
            Case(f"{in_flight} in flight", server, Load(request, in_flight, count), size)
            for in_flight, count in echo.CALLS.items()
            for server, size in sizes.items()
        ]
        back_to_back = [streams.case("back to back", server) for server in running]
        results = measure([*calls, *back_to_back], rounds)
    print_table({case: results[case] for case in calls}, baseline)
    print()
    print_table({case: results[case] for case in back_to_back}, baseline, unit="message")
