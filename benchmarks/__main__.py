"""`python -m benchmarks NAME`: measure, and print the tables of docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks import (
    agreement,
    cancel,
    comparison,
    decode,
    echo,
    handover,
    http,
    memory,
    openai,
    profile,
    resume,
    scheduler_gateway,
    scheduler_registrations,
    scheduler_registry,
    scheduler_routing,
    servers,
    sglang,
    streams,
    tensors,
    transport,
)
from benchmarks.errors import CannotMeasure

_BENCHMARKS: dict[str, Callable[[int], None]] = {
    "memory": lambda rounds: memory.run(),
    "echo": echo.run,
    "streams": streams.run,
    "cancel": cancel.run,
    "transport": transport.run,
    "http": http.run,
    "openai": openai.run,
    "profile": lambda rounds: profile.run(),
    "tensors": tensors.run,
    "handover": handover.run,
    "decode": decode.run,
    "peers": comparison.run,
    "scheduler_registry": lambda rounds: scheduler_registry.run(),
    "scheduler_routing": lambda rounds: scheduler_routing.run(),
    "scheduler_registrations": lambda rounds: scheduler_registrations.run(),
    "scheduler_gateway": scheduler_gateway.run,
    "agreement": lambda rounds: agreement.run(),
    "resume": resume.run,
    "sglang": sglang.run,
}


def main() -> int:
    """Run the benchmarks named; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"{', '.join(_BENCHMARKS)}; all if left")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    options = parser.parse_args()
    unknown = set(options.names) - set(_BENCHMARKS)
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(_BENCHMARKS)}"
        )
    try:
        servers.take_load_core()
        for name in options.names or _BENCHMARKS:
            print(f"\n{name}\n")
            _BENCHMARKS[name](options.rounds)
    except CannotMeasure as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
