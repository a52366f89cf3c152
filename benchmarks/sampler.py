"""Samples where this process spends its CPU time, from the first SIGUSR1 to the second.

After the second it prints how often each module was seen, as one line of JSON. What is seen is the
innermost frame; those of the standard library count for whoever called them, but for asyncio's,
and so do those of numpy, and of methods that attrs generated.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from types import FrameType

_INTERVAL = 0.002
"""Seconds of CPU time between two samples."""
_CALLERS_OWN = (sys.stdlib_module_names | {"numpy"}) - {"asyncio"}

_samples: Counter[str] = Counter()


def install() -> None:
    """Listen for the signals; call in the main thread."""
    signal.signal(signal.SIGUSR1, _start)
    signal.signal(signal.SIGPROF, _sample)


def _start(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGUSR1, _stop)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGUSR1, _start)
    print(json.dumps(_samples), flush=True)
    _samples.clear()


def _sample(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        package = module.partition(".")[0]
        if package and package not in _CALLERS_OWN and not package.startswith("namedtuple_"):
            _samples[module] += 1
            return
        frame = frame.f_back
