"""The servers that are measured: child processes on a core of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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

_HTTP = re.compile(r"^HTTP on (\S+:\d+)$")
_READY = re.compile(r"^(?:ready\b|anyserve \S+: scheduler ready).* on (\S+:\d+)$")
_EXIT_TIMEOUT = 30.0
_ANSWER_TIMEOUT = 10.0


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
    http: str = ""
    """`host:port` where it serves HTTP, if it does beside `address`."""

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
def scheduler(
    *options: str, name: str = "scheduler", cores: str = str(SERVER_CORE)
) -> Iterator[Server]:
    """A scheduler with `options`, which has no replicas yet."""
    arguments = ("-m", "anyserve_scheduler", "--port", "0", "--log-level", "warning", *options)
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
def llama() -> Iterator[Server]:
    """`benchmarks.llama_server`."""
    with _running("llama.cpp's server", "-m", "benchmarks.llama_server", cores=BOTH) as server:
        yield server


@contextmanager
def chat_worker() -> Iterator[Server]:
    """`benchmarks.chat_worker`, on the load's core: what is measured is before it."""
    arguments = ("-m", "benchmarks.chat_worker")
    with _running("the worker itself", *arguments, cores=str(LOAD_CORE)) as server:
        yield server


def move_to_load(pid: int) -> None:
    """Put a process on the load's core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {LOAD_CORE})


def await_answer(check: Callable[[], object]) -> None:
    """Wait until it raises no `CannotMeasure`; raises that in the end."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        try:
            check()
        except CannotMeasure:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def child(
    *arguments: str,
    python: str = sys.executable,
    cores: str = str(SERVER_CORE),
    log: IO[str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """`python` with `arguments`, on those cores; what it prints is piped, or all goes to `log`."""
    with command(python, *arguments, cores=cores, log=log) as process:
        yield process


@contextmanager
def command(
    *words: str, cores: str = str(SERVER_CORE), log: IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Any program, as `child` runs them."""
    with subprocess.Popen(
        ["taskset", "--cpu-list", cores, *words],
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
        http = ""
        for line in process.stdout:
            if match := _HTTP.match(line):
                http = match[1]
            if match := _READY.match(line):
                break
        else:
            raise CannotMeasure(f"{name} did not start: see above")
        processes = proc.family(process.pid)
        yield Server(name, match[1], processes, process.stdout, parses, http=http)
