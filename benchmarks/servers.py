"""The servers that are measured: child processes on a core of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import attrs

from benchmarks import proc
from benchmarks.errors import CannotMeasure

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
BOTH = f"{SERVER_CORE},{LOAD_CORE}"
"""Cores of a server that has threads for both."""

_READY = re.compile(r"^ready\b.* on (\S+:\d+)$")
_EXIT_TIMEOUT = 30.0


@attrs.frozen(eq=False)
class Server:
    """A server that runs."""

    name: str
    address: str
    """`host:port`."""
    processes: Mapping[str, int]
    """The process ids of its family, by name."""
    _output: IO[str]

    def read_line(self, start: str) -> str:
        """The next line that it prints which starts like that."""
        for line in self._output:
            if line.startswith(start):
                return line
        raise CannotMeasure(f"{self.name} has ended: see above")

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far, of each process."""
        return {name: proc.cpu_seconds(pid) for name, pid in self.processes.items()}


def take_load_core() -> None:
    """Keep this process, and the load generators that it starts, off the servers' core."""
    cores = os.sched_getaffinity(0)
    if not {SERVER_CORE, LOAD_CORE} <= cores:
        raise CannotMeasure(f"cores {SERVER_CORE} and {LOAD_CORE} are needed, there are {cores}")
    if shutil.which("taskset") is None:
        raise CannotMeasure("taskset is missing: apt-get install util-linux")
    os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def replica(
    *options: str,
    name: str = "AnyServe",
    module: str = "anyserve.replica",
    cores: str = str(SERVER_CORE),
) -> Iterator[Server]:
    """A replica with `options`, of one worker."""
    command = ["-m", module, "--port", "0", "--log-level", "warning", *options]
    with _running(name, command, cores) as server:
        yield server


@contextmanager
def echoes() -> Iterator[tuple[Server, Server, Server]]:
    """Three servers of `echo`: ours, ours on its reference transport, and grpc.aio."""
    app = ("--app", "examples.echo:app")
    with (
        replica(*app) as ours,
        replica(*app, "--transport", "grpclib", name="AnyServe, grpclib") as reference,
        grpc_aio() as theirs,
    ):
        yield ours, reference, theirs


@contextmanager
def grpc_aio() -> Iterator[Server]:
    """The echo server of `benchmarks.grpc_aio_server`."""
    with _running("grpc.aio", ["-m", "benchmarks.grpc_aio_server"], str(SERVER_CORE)) as server:
        yield server


@contextmanager
def child(*arguments: str, cores: str) -> Iterator[subprocess.Popen[str]]:
    """This Python with `arguments`, on those cores, its standard streams piped."""
    command = ["taskset", "--cpu-list", cores, sys.executable, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                # What it still prints must not fill the pipe.
                process.communicate(timeout=_EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _running(name: str, arguments: list[str], cores: str) -> Iterator[Server]:
    with child(*arguments, cores=cores) as process:
        assert process.stdout is not None
        address = next((match[1] for line in process.stdout if (match := _READY.match(line))), None)
        if address is None:
            raise CannotMeasure(f"{name} did not start: see above")
        yield Server(name, address, proc.family(process.pid), process.stdout)
