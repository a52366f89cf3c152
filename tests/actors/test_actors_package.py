"""The package as its users meet it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_the_counter_example_tells_what_happened() -> None:
    assert run_python(str(ROOT / "examples/actors_counter.py")).splitlines() == [
        "total 6",
        "total after a failure 0",
        "example/counter is running, 1 restart, last error ValueError: can't add -1",
        "actor 'counter' is gone",
    ]


def test_importing_the_package_loads_neither_trio_asyncio_nor_asyncio() -> None:
    loaded = run_python("-c", "import anyserve_actors, sys; print(*sys.modules)").split()
    assert "anyserve_actors.supervisor" in loaded
    assert "trio_asyncio" not in loaded
    assert "anyserve_actors.asyncio_bridge" not in loaded
