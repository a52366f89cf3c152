"""Where the replica's CPU time goes with 64 small echoes in flight, by component."""

from __future__ import annotations

import json
import os
import signal

from benchmarks import echo, h2load, servers
from benchmarks.h2load import Load
from benchmarks.messages import check_echo, echo_request
from benchmarks.tables import number, table

IN_FLIGHT = 64
CALLS = 20_000

_LEAST = 0.005
"""Share under which a component has no row."""


def run() -> None:
    """Print the table. Sampling itself makes the replica a few percent slower."""
    h2load.check_installed()
    request = echo_request(echo.FLOATS)
    options = ("--app", "examples.echo:app")
    with servers.replica(*options, module="benchmarks.sampled_replica") as server:
        size = check_echo(server.address, request)
        replica, pid = next(iter(server.processes.items()))
        os.kill(pid, signal.SIGUSR1)
        figures = h2load.run(server, Load(request, IN_FLIGHT, CALLS), size)
        os.kill(pid, signal.SIGUSR1)
        samples: dict[str, int] = json.loads(server.read_line("{"))
    total = sum(samples.values())
    rows = [
        [name, f"{count / total:.1%}", number(count / total * figures.cpu_us[replica])]
        for name, count in sorted(samples.items(), key=lambda item: -item[1])
        if count / total >= _LEAST
    ]
    print(table(["component", "share", "CPU µs/req"], rows))
