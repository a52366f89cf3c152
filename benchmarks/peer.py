"""Other people's servers: each in an environment that uv keeps for its script in `peers`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs

from benchmarks import proc, servers
from benchmarks.errors import CannotMeasure
from benchmarks.messages import check_echo, echo_request
from benchmarks.ports import free_port
from benchmarks.servers import Server

_INSTALL_TIMEOUT = 600.0
_START_TIMEOUT = 90.0
_RETRY = 0.25


def _check_grpc(address: str) -> None:
    check_echo(address, echo_request(1))


@attrs.frozen
class Peer:
    """A server that is a script in `peers`."""

    title: str
    module: str
    streams: bool = True
    """Whether it serves the streams too."""
    check: Callable[[str], object] = _check_grpc
    """Raises `CannotMeasure` where what is at an address does not answer as it should."""

    @property
    def name(self) -> str:
        """Its title and its version, which the script pins first."""
        lines = self._script.read_text().partition("\n# ///\n")[0].splitlines()[1:]
        header = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
        version: str = header["dependencies"][0].partition("==")[2]
        return f"{self.title} {version}"

    @contextmanager
    def running(self, *options: str) -> Iterator[Server]:
        """The server, once it answers; raises `CannotMeasure` where it can't be had here.

        options: further arguments of its script.
        """
        python = self._environment()
        port = free_port()
        address = f"127.0.0.1:{port}"
        arguments = ("-m", f"benchmarks.peers.{self.module}", str(port), *options)
        with (
            tempfile.TemporaryFile("w+") as log,
            servers.child(*arguments, python=python, log=log) as process,
        ):
            try:
                _wait_ready(process, partial(self.check, address))
            except CannotMeasure as error:
                log.seek(0)
                raise CannotMeasure(f"{self.name} {error}: {_last_line(log.read())}") from error
            processes = proc.family(process.pid)
            yield Server(self.name, address, processes, log, streams=self.streams)

    @property
    def _script(self) -> Path:
        return servers.ROOT / "benchmarks" / "peers" / f"{self.module}.py"

    def _environment(self) -> str:
        """The interpreter of the script's environment, which is made where there is none yet."""
        if shutil.which("uv") is None:
            raise CannotMeasure(f"{self.name} can't be installed: uv is missing")
        _uv(self.name, "sync", "--script", str(self._script))
        return _uv(self.name, "python", "find", "--script", str(self._script)).strip()


def _uv(name: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["uv", *arguments],
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(f"{name} can't be installed in {_INSTALL_TIMEOUT:.0f} s") from error
    if done.returncode:
        raise CannotMeasure(f"{name} can't be installed: {_last_line(done.stderr)}")
    return done.stdout


def _wait_ready(process: subprocess.Popen[str], check: Callable[[], object]) -> None:
    """Until it answers: that its port is open says nothing of its models."""
    until = time.monotonic() + _START_TIMEOUT
    while process.poll() is None:
        try:
            check()
        except CannotMeasure as error:
            if time.monotonic() > until:
                raise CannotMeasure(f"does not answer ({error})") from error
            time.sleep(_RETRY)
        else:
            return
    raise CannotMeasure("has ended")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]
