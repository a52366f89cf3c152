"""`python -m benchmarks`: what it says when it can't measure, and the bound on idle memory.

The figures themselves are for docs/performance.md; a test that failed on a busy machine would be
no use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MOST_MEMORY = 58
"""MiB that an idle replica with one echo worker may have of their own. What PSS adds is their share
of libraries, which is more the fewer other processes there are."""

needs_pinning = pytest.mark.skipif(
    sys.platform != "linux" or (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None,
    reason="pins servers to a core of their own",
)


def benchmark(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one benchmark to its end."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", name],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_unknown_benchmark_is_refused_naming_what_there_is() -> None:
    done = benchmark("nonsense")

    assert done.returncode == 2
    assert "nonsense: there are memory, echo, " in done.stderr


@needs_pinning
def test_without_h2load_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    taskset = shutil.which("taskset")
    assert taskset is not None
    (tmp_path / "taskset").symlink_to(taskset)

    done = benchmark("echo", PATH=str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks: h2load is missing: apt-get install nghttp2-client")
    assert done.stderr.count("\n") == 1


@needs_pinning
def test_an_idle_replica_with_one_echo_worker_stays_under_its_bound_of_memory() -> None:
    done = benchmark("memory")

    assert done.returncode == 0, done.stderr
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if "|" in line]
    taken = {row[0].strip(): row[2].strip() for row in rows}
    assert {"replica", "worker", "together"} <= set(taken)
    assert float(taken["together"]) < MOST_MEMORY
