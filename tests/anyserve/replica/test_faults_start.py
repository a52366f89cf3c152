"""What keeps a replica from starting: one line, an exit status, and nothing left behind."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def workers_started_by(pid: int) -> list[str]:
    """The workers of a replica that are there, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"anyserve.worker" in words and str(pid).encode() in words:
            found.append(str(path))
    return found


def failure(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it said on standard error; nothing of it is left."""
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert workers_started_by(process.pid) == []
    return process.returncode, errors


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--app", "examples.echo:app", "--caps", "echo,nonsense"],
            "unknown capability nonsense; there is: decode, echo, embedding",
        ),
        (["--caps", "nonsense"], "unknown capability nonsense; there is: decode, embedding"),
        (
            ["--app", "unimportable:app"],
            "app 'unimportable:app' can't be imported: RuntimeError: broken on purpose",
        ),
        (
            ["--app", "nowhere.to.be:found"],
            "app 'nowhere.to.be:found' can't be imported: ModuleNotFoundError:"
            " No module named 'nowhere'",
        ),
        (["--app", "broken:missing"], "app 'broken:missing': module 'broken' has no 'missing'"),
        (
            ["--app", "broken:not_an_app"],
            "app 'broken:not_an_app' is a int, not an App or its factory",
        ),
        (["--app", "broken:empty"], "app 'broken:empty' declares no capability"),
        (["--app", "broken:factory"], "app 'broken:factory': ValueError: no such licence"),
        (
            ["--app", "broken:unloadable", "--workers", "2"],
            "worker broken can't load its app: OSError: weights.bin: no such file",
        ),
        (["--app", "broken:dies"], "worker broken exited with status 9 before it was ready"),
        (
            ["--app", "examples.echo:app", "--python", "/nowhere/python"],
            "worker echo can't be started: [Errno 2] No such file or directory: '/nowhere/python'",
        ),
        (
            ["--app", "examples.echo:app", "--python", "/bin/true"],
            "worker echo exited with status 0 before it was ready",
        ),
        (
            ["--app", "examples.echo:app", "--host", "203.0.113.1"],
            "cannot listen on 203.0.113.1:0: Cannot assign requested address",
        ),
        (
            ["--caps", "decode", "--model", "/nowhere/model.gguf"],
            "worker decode can't load its app: model '/nowhere/model.gguf':"
            " No such file or directory",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replica_that_cannot_start_says_why_in_one_line(
    launch: Any, options: list[str], message: str
) -> None:
    status, errors = failure(launch(*options))
    # Which of several workers is the first to fail is open.
    assert re.sub(r"(worker \w+)-\d", r"\1", errors) == f"anyserve: {message}\n"
    assert status == 1


def test_a_port_in_use_is_said_in_one_line(launch: Any, taken_port: int) -> None:
    process = launch("--app", "examples.echo:app", "--port", str(taken_port))
    assert failure(process) == (
        1,
        f"anyserve: cannot listen on 127.0.0.1:{taken_port}: Address already in use\n",
    )


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--port", "65536"], "argument --port: '65536' is no port from 0 to 65535"),
        (["--workers", "0"], "argument --workers: '0' is not 1 or more"),
        (["--caps", ","], "argument --caps: names no capability"),
        (["--drain-timeout", "soon"], "argument --drain-timeout: 'soon' is no number of seconds"),
    ],
)
def test_a_command_line_that_makes_no_sense_has_status_2(
    launch: Any, options: list[str], complaint: str
) -> None:
    status, errors = failure(launch(*options))
    assert status == 2
    assert errors.splitlines()[-1].endswith(complaint)


def test_workers_run_in_the_environment_that_the_user_names(
    start_replica: Any, connect: Any, request_of: Any, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if path))
    live = start_replica("--app", "behaviours:app", "--python", str(environment / "bin/python"))
    reply = connect(live.address).call("ModelInfer", request_of("environment"))
    # BYTES: four bytes of length first.
    assert reply.raw_output_contents[0][4:].decode() == str(environment)
    assert str(environment) != sys.prefix
