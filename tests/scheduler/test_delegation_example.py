"""The example of delegation runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def test_the_example_is_answered_by_the_scheduler_and_by_the_replica_that_lacks_it(
    start_scheduler: Any, start_replica: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--in-process", "--replica-id")
    echo = start_replica("--app", "examples.echo:app", *to, "echo")
    start_replica("--app", "examples.streaming:app", *to, "streaming")
    command = [sys.executable, "examples/delegation.py", scheduler.address, echo.address]

    def answered() -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return "" if done.returncode else done.stdout

    assert eventually(answered) == (  # the replicas register meanwhile
        f"{scheduler.address} answers [2, 1, 0]\n{echo.address} answers [2, 1, 0]\n"
    )
