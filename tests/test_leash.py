"""What the tests start ends with them, whatever ends them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path

ENDLESS = Path(__file__).with_name("endless.py")


def children(pid: int) -> set[int]:
    """The processes that the main thread of a process has started."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_run_that_is_killed_leaves_no_replica_and_no_worker() -> None:
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", str(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            lines = (re.search(r"serves by (\d+)", line) for line in run.stdout)
            replica = next(int(match[1]) for match in lines if match)
            workers = children(replica)
            assert workers
            started = [os.pidfd_open(pid) for pid in (replica, *workers)]
            run.kill()
            for process in started:
                assert select.select([process], [], [], 20)[0]
                os.close(process)
        finally:
            run.kill()
