"""How a command that asks somebody runs, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

import trio

from anyserve.cli.arguments import complain
from anyserve.errors import AnyServeError, first_of


def run_async(
    command: Callable[[argparse.Namespace], Awaitable[int | None]],
    options: argparse.Namespace,
    *,
    interrupted: int = 1,
) -> int:
    """Run `command`; the exit status that it returns (0 where none), 1 where it fails.

    What it fails with is told in one line. interrupted: the status after Ctrl-C.
    """
    status = 0
    try:
        status = trio.run(command, options) or 0
    except* (AnyServeError, OSError) as errors:
        complain(first_of(errors))
        status = 1
    except* trio.TooSlowError:
        complain("no answer in time")
        status = 1
    except* KeyboardInterrupt:
        status = interrupted
    return status
