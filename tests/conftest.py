"""A live replica for the tests: the real command in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent
READY = re.compile(r"^ready in .* on (\S+:(\d+))$", re.MULTILINE)


@attrs.define
class LiveReplica:
    """A replica that serves."""

    process: subprocess.Popen[str]
    address: str
    port: int
    log: Path
    """Its standard error."""

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text()

    def stop(self, timeout: float = 30) -> int:
        """Ask it to drain, and wait; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


StartReplica = Callable[..., LiveReplica]


@contextmanager
def running_replica(log: Path, *options: str) -> Iterator[LiveReplica]:
    """Run `python -m anyserve.replica` with `options` until the block ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "apps")}
    with log.open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "anyserve.replica", "--port", "0", *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
        )
    try:
        assert process.stdout is not None
        printed = ""
        while (match := READY.search(printed)) is None:
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"the replica did not start: {printed}{log.read_text()}")
            printed += line
        yield LiveReplica(process, match[1], int(match[2]), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveReplica]:
    """One that all tests share, which leave it as they found it: `tests/apps/behaviours.py`."""
    log = tmp_path_factory.mktemp("replica") / "log"
    with running_replica(log, "--app", "behaviours:app") as live:
        yield live


@pytest.fixture
def start_replica(tmp_path: Path) -> Iterator[StartReplica]:
    """Start replicas of the test's own; they end with it."""
    with ExitStack() as stack:
        started = 0

        def start(*options: str) -> LiveReplica:
            nonlocal started
            started += 1
            log = tmp_path / f"replica-{started}.log"
            return stack.enter_context(running_replica(log, *options))

        yield start
