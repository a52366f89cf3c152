"""`anyserve replica` that samples where it spends its CPU time, between two SIGUSR1.

After the second it prints the samples by component, as one line of JSON. A component is the
package of the innermost frame; the standard library's frames count for whoever called them,
but for asyncio's.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from types import FrameType

from anyserve import cli

_INTERVAL = 0.002
"""Seconds of CPU time between two samples."""

_samples: Counter[str] = Counter()


def main() -> int:
    """Run the replica; its exit status."""
    signal.signal(signal.SIGUSR1, _start)
    signal.signal(signal.SIGPROF, _sample)
    return cli.main(["replica", *sys.argv[1:]])


def _start(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR1, _stop)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(_samples), flush=True)


def _sample(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        component = _component(frame.f_globals.get("__name__", ""))
        if component is not None:
            _samples[component] += 1
            return
        frame = frame.f_back


def _component(module: str) -> str | None:
    package, _, rest = module.partition(".")
    if package == "anyserve":
        return f"anyserve.{rest.partition('.')[0]}"
    if package in sys.stdlib_module_names and package != "asyncio":
        return None
    return None if package.startswith("namedtuple_") else package


if __name__ == "__main__":
    sys.exit(main())
