"""The load generator: h2load with a prebuilt body, and the server's CPU time meanwhile."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.errors import CannotMeasure
from benchmarks.prepared import INFER
from benchmarks.servers import Server

_PREFIX = 5
"""Bytes before each gRPC message: whether it is compressed, and its length."""
_TIMEOUT = 300.0
_RATE = re.compile(r"finished in .*?, ([\d.]+) req/s")
_SUCCEEDED = re.compile(r"(\d+) succeeded")
_DATA = re.compile(r"headers \(space savings .*?\), \S+ \((\d+)\) data")


@attrs.frozen
class Load:
    """What is sent."""

    message: bytes
    in_flight: int
    """Calls at any time, all on one connection."""
    calls: int
    method: str = INFER
    replies: int = 1
    """Messages that answer one call."""

    def options(self, folder: str) -> list[str]:
        """Those of h2load, which may read files in `folder`."""
        message = b"\0" + len(self.message).to_bytes(4, "big") + self.message
        return [
            *("--clients", "1", "--max-concurrent-streams", str(self.in_flight)),
            *("--data", _file(folder, message)),
            *("--header", "content-type: application/grpc", "--header", "te: trailers"),
        ]

    def answer_size(self, reply_size: int) -> int:
        """Bytes of the answer to a call whose replies have so many."""
        return reply_size + self.replies * _PREFIX


@attrs.frozen
class Post:
    """JSON that is posted by HTTP/1.1."""

    body: bytes
    in_flight: int
    """Calls at any time, each on a connection of its own."""
    calls: int
    method: str
    """The path."""
    replies: int = 1
    """What one call is counted as, such as the tokens of a stream."""

    def options(self, folder: str) -> list[str]:
        """See `Load`."""
        return [
            *("--h1", "--clients", str(self.in_flight), "--data", _file(folder, self.body)),
            *("--header", "content-type: application/json"),
        ]

    def answer_size(self, reply_size: int) -> int:
        """See `Load`."""
        return reply_size


@attrs.frozen
class Figures:
    """What one run, or the median of several, showed."""

    cpu_us: Mapping[str, float]
    """CPU time of each process of the server, microseconds a reply."""
    rate: float
    """Replies a second."""
    p50_ms: float
    """Time of a call, to its last reply."""
    p99_ms: float

    @property
    def total_cpu_us(self) -> float:
        """CPU time of the whole server, microseconds a reply."""
        return sum(self.cpu_us.values())


def check_installed() -> None:
    """Raise `CannotMeasure` where h2load is missing."""
    if shutil.which("h2load") is None:
        raise CannotMeasure(
            "h2load is missing: apt-get install nghttp2-client (Debian, Ubuntu),"
            " dnf install nghttp2 (Fedora), brew install nghttp2"
        )


def run(server: Server, load: Load | Post, reply_size: int | None) -> Figures:
    """Send the load; raises `CannotMeasure` unless the replies to each call had so many bytes.

    reply_size: None where it varies; then each call has to succeed, as HTTP has it.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = _command(server, load, folder)
        before = server.cpu_seconds()
        done = subprocess.run(
            [*command, "--log-file", str(log)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        after = server.cpu_seconds()
        _check(server, load, done.stdout, reply_size)
        times = [int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines()]
    percentiles = statistics.quantiles(times, n=100)
    replies = load.calls * load.replies
    return Figures(
        cpu_us={name: (after[name] - before[name]) / replies * 1e6 for name in before},
        rate=float(_found(_RATE, done.stdout)) * load.replies,
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
    )


@contextmanager
def sending(server: Server, load: Load) -> Iterator[None]:
    """Send the load meanwhile; raises `CannotMeasure` if that ended by itself."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(_command(server, load, folder), stdout=subprocess.DEVNULL) as process,
    ):
        try:
            yield
            if process.poll() is not None:
                raise CannotMeasure(f"{server.name} did not answer until the end")
        finally:
            process.terminate()


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each figure, by itself."""
    return Figures(
        cpu_us={
            name: statistics.median(figures.cpu_us[name] for figures in runs)
            for name in runs[0].cpu_us
        },
        rate=statistics.median(figures.rate for figures in runs),
        p50_ms=statistics.median(figures.p50_ms for figures in runs),
        p99_ms=statistics.median(figures.p99_ms for figures in runs),
    )


def _command(server: Server, load: Load | Post, folder: str) -> list[str]:
    url = f"http://{server.address}{load.method}"
    return ["h2load", "--requests", str(load.calls), *load.options(folder), url]


def _file(folder: str, body: bytes) -> str:
    """The path of a file in `folder` with the body."""
    path = Path(folder, "body")
    path.write_bytes(body)
    return str(path)


def _check(server: Server, load: Load | Post, output: str, reply_size: int | None) -> None:
    if reply_size is None:
        if int(_found(_SUCCEEDED, output)) != load.calls:
            raise CannotMeasure(f"{server.name} did not answer {load.calls} calls:\n{output}")
        return
    # That a call failed shows in the size of what came back: a gRPC call has no other sign of it,
    # and Hypercorn's answers never count as successes, for want of a reason phrase.
    data = int(_found(_DATA, output))
    if data != load.calls * load.answer_size(reply_size):
        raise CannotMeasure(
            f"{server.name} answered {load.calls} calls with {data} bytes:\n{output}"
        )


def _found(pattern: re.Pattern[str], output: str) -> str:
    match = pattern.search(output)
    if match is None:
        raise CannotMeasure(f"h2load printed something unexpected:\n{output}")
    return match[1]
