"""The example of delegation runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def test_the_example_is_answered_by_the_scheduler_and_by_the_replica_that_lacks_it(
    start_scheduler: Any, start_replica: Any
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--in-process", "--replica-id")
    echo = start_replica("--app", "examples.echo:app", *to, "echo")
    start_replica("--app", "examples.streaming:app", *to, "streaming")
    command = [sys.executable, "examples/delegation.py", scheduler.address, echo.address]
    deadline = time.monotonic() + 20
    while (done := subprocess.run(command, cwd=ROOT, capture_output=True, text=True)).returncode:
        assert time.monotonic() < deadline, done.stderr  # the replicas register meanwhile
    assert done.stdout == (
        f"{scheduler.address} answers [2, 1, 0]\n{echo.address} answers [2, 1, 0]\n"
    )
