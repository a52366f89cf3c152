"""What every test of the object plane is held to: /dev/shm and open files afterwards as before."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anyserve.objects import segments


def names_of_this_process() -> list[str]:
    """Shared-memory objects that this test process is answerable for; others run beside it."""
    own = (f"anyserve-{os.getpid()}-", f"client-{os.getpid()}-")
    return sorted(name for name in os.listdir(segments.DIRECTORY) if name.startswith(own))


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(name for name in found if name.startswith(segments.DIRECTORY))


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = names_of_this_process(), open_files()
    yield
    gc.collect()
    assert (names_of_this_process(), open_files()) == before


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -c CODE ARGUMENTS`; it is killed and reaped at the end of the test."""
    with ExitStack() as stack:

        def start(
            code: str, *arguments: object, python: str = sys.executable
        ) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [python, "-W", "error", "-c", code, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def client_file() -> Iterator[Callable[[int], Path]]:
    """Makes shared-memory objects as a client would: name unique, `size` bytes, zeroed."""
    numbers = itertools.count()
    made: list[Path] = []

    def make(size: int) -> Path:
        path = Path(segments.DIRECTORY, f"client-{os.getpid()}-{next(numbers)}")
        path.write_bytes(bytes(size))
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)
