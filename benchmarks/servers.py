"""The servers that are measured: child processes on a core of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

import attrs

from benchmarks import proc
from benchmarks.errors import CannotMeasure

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
BOTH = f"{SERVER_CORE},{LOAD_CORE}"
"""Cores of a server that has threads for both."""

ECHO = ("--app", "examples.echo:app")
WORK = ("--app", "benchmarks.work_app:app")
"""Options of a replica with one worker."""

_READY = re.compile(r"^(?:ready\b|anyserve \S+: scheduler ready).* on (\S+:\d+)$")
_EXIT_TIMEOUT = 30.0


@attrs.frozen(eq=False)
class Server:
    """A server that runs."""

    name: str
    address: str
    """`host:port`."""
    processes: Mapping[str, int]
    """The process ids of its family, by name."""
    output: IO[str]
    """What it prints."""
    parses: bool = True
    """Whether it reads requests; one that does not returns any, and streams 256 messages."""
    streams: bool = True
    """Whether it has streams."""

    def read_line(self, start: str) -> str:
        """The next line that it prints which starts like that."""
        for line in self.output:
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
def all_of(*starting: AbstractContextManager[Server]) -> Iterator[list[Server]]:
    """Servers that run at the same time."""
    with ExitStack() as running:
        yield [running.enter_context(server) for server in starting]


def echoes() -> AbstractContextManager[list[Server]]:
    """Servers of `echo`; the last is the one to compare with."""
    return all_of(
        replica(*ECHO),
        in_process(*ECHO),
        replica(*ECHO, "--transport", "grpclib", name="AnyServe, grpclib"),
        grpc_aio(),
    )


@contextmanager
def replica(
    *options: str,
    name: str = "AnyServe",
    module: str = "anyserve.replica",
    cores: str = str(SERVER_CORE),
) -> Iterator[Server]:
    """A replica with `options`, of one worker."""
    arguments = ["-m", module, "--port", "0", "--log-level", "warning", *options]
    with _running(name, *arguments, cores=cores) as server:
        yield server


@contextmanager
def scheduler(name: str = "scheduler", cores: str = str(SERVER_CORE)) -> Iterator[Server]:
    """A scheduler, which has no replicas yet."""
    arguments = ("-m", "anyserve_scheduler", "--port", "0", "--log-level", "warning")
    with _running(name, *arguments, cores=cores) as server:
        yield server


def in_process(*options: str, module: str = "anyserve.replica") -> AbstractContextManager[Server]:
    """A replica that runs its app in its own process."""
    return replica(*options, "--in-process", name="AnyServe, in process", module=module)


@contextmanager
def grpc_aio() -> Iterator[Server]:
    """`benchmarks.grpc_aio_server`."""
    with _running("grpc.aio", "-m", "benchmarks.grpc_aio_server") as server:
        yield server


@contextmanager
def grpc_aio_bytes() -> Iterator[Server]:
    """`benchmarks.grpc_aio_server` without protobuf."""
    arguments = ("-m", "benchmarks.grpc_aio_server", "--bytes")
    with _running("grpc.aio, bytes", *arguments, parses=False) as server:
        yield server


@contextmanager
def grpc_threads() -> Iterator[Server]:
    """`benchmarks.grpc_threads_server`."""
    with _running("grpcio, 32 threads", "-m", "benchmarks.grpc_threads_server") as server:
        yield server


@contextmanager
def transport() -> Iterator[Server]:
    """`benchmarks.transport_server`."""
    arguments = ("-m", "benchmarks.transport_server")
    with _running("AnyServe's transport", *arguments, parses=False) as server:
        yield server


@contextmanager
def http() -> Iterator[Server]:
    """`benchmarks.http_server`."""
    with _running("AnyServe's HTTP", "-m", "benchmarks.http_server") as server:
        yield server


@contextmanager
def child(
    *arguments: str,
    python: str = sys.executable,
    cores: str = str(SERVER_CORE),
    log: IO[str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """`python` with `arguments`, on those cores; what it prints is piped, or all goes to `log`."""
    with subprocess.Popen(
        ["taskset", "--cpu-list", cores, python, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if log is None else log,
        stderr=log,
        text=True,
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
def _running(
    name: str, *arguments: str, cores: str = str(SERVER_CORE), parses: bool = True
) -> Iterator[Server]:
    with child(*arguments, cores=cores) as process:
        assert process.stdout is not None
        address = next((match[1] for line in process.stdout if (match := _READY.match(line))), None)
        if address is None:
            raise CannotMeasure(f"{name} did not start: see above")
        yield Server(name, address, proc.family(process.pid), process.stdout, parses)
