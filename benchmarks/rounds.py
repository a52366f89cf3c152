"""Several loads on several servers, turn by turn, so that a noisy minute falls on all of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import attrs

from benchmarks import h2load
from benchmarks.h2load import Figures, Load, Post
from benchmarks.servers import Server
from benchmarks.tables import number, table

_LEAST = 0.01
"""Share of the CPU time under which a process is not named."""


@attrs.frozen(eq=False)
class Case:
    """One row of a table: a load on a server."""

    what: str
    """The load in words."""
    server: Server
    load: Load | Post
    reply_size: int | None
    """Bytes; None where it varies."""
    baseline: str | None = None
    """`what` of the case on another server that this one is compared with; None: its own."""


def measure(cases: Sequence[Case], rounds: int) -> Mapping[Case, Figures]:
    """The medians of each case over the rounds, after one that does not count."""
    runs: dict[Case, list[Figures]] = {case: [] for case in cases}
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", file=sys.stderr)
        for case in cases:
            figures = h2load.run(case.server, case.load, case.reply_size)
            if turn:
                runs[case].append(figures)
    return {case: h2load.median(figures) for case, figures in runs.items()}


def print_table(results: Mapping[Case, Figures], baseline: Server, unit: str = "req") -> None:
    """One row for each case, with its CPU time over that of the same load on `baseline`.

    unit: what is counted; of a stream's messages there are no latencies.
    """
    bases = {case.what: figures for case, figures in results.items() if case.server is baseline}
    latencies = unit == "req"
    rows = [
        [
            case.what,
            case.server.name,
            number(figures.total_cpu_us),
            _by_process(figures),
            number(figures.total_cpu_us / bases[case.baseline or case.what].total_cpu_us),
            number(figures.rate),
            *([number(figures.p50_ms), number(figures.p99_ms)] if latencies else []),
        ]
        for case, figures in results.items()
    ]
    heads = ["", "server", f"CPU µs/{unit}", "by process", f"× {baseline.name}", f"{unit}/s"]
    print(table(heads + ["p50 ms", "p99 ms"] * latencies, rows))


def _by_process(figures: Figures) -> str:
    if len(figures.cpu_us) == 1:
        return ""
    least = figures.total_cpu_us * _LEAST
    return ", ".join(f"{name} {number(cpu)}" for name, cpu in figures.cpu_us.items() if cpu > least)
