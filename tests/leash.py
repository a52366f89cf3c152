"""Kills what a run of the tests has started, once the run has ended without doing so itself.

A run that a signal or pytest-timeout ends tears nothing down. What it has started, and what that
has started, is told by an environment variable, which each process hands on.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path


def main() -> None:
    """Wait for the end of the run; its pidfd and the variable are the arguments."""
    run, variable = sys.argv[1:]
    select.select([int(run)], [], [])
    mark = f"{variable}=".encode()
    while any(_kill(path, mark) for path in Path("/proc").glob("[0-9]*")):
        pass  # what was killed may have started more


def _kill(path: Path, mark: bytes) -> bool:
    """Whether the process was one of those; waits for its end then."""
    try:
        process = os.pidfd_open(int(path.name))
    except ProcessLookupError:
        return False
    try:
        variables = (path / "environ").read_bytes().split(b"\0")
        if not any(variable.startswith(mark) for variable in variables):
            return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
        return True
    except (PermissionError, ProcessLookupError, FileNotFoundError):
        return False  # another user's, or it has ended
    finally:
        os.close(process)


if __name__ == "__main__":
    main()
