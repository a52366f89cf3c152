"""`python -m benchmarks NAME`: measure, and print the tables of docs/performance.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import decode, echo, handover, memory, profile, servers, tensors
from benchmarks.errors import CannotMeasure


def main() -> int:
    """Run the benchmarks named; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="memory, echo, profile, tensors, handover, decode; all if left"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    options = parser.parse_args()
    benchmarks: dict[str, Callable[[], None]] = {
        "memory": memory.run,
        "echo": partial(echo.run, options.rounds),
        "profile": profile.run,
        "tensors": partial(tensors.run, options.rounds),
        "handover": partial(handover.run, options.rounds),
        "decode": partial(decode.run, options.rounds),
    }
    unknown = set(options.names) - set(benchmarks)
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(benchmarks)}"
        )
    try:
        servers.take_load_core()
        for name in options.names or benchmarks:
            print(f"\n{name}\n")
            benchmarks[name]()
    except CannotMeasure as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
