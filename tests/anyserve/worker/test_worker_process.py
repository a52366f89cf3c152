"""A worker's process: what ends it, and what does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from anyserve.link import frames
from anyserve.link.channel import FrameChannel
from anyserve.link.frames import Frame, Kind
from anyserve.objects.segments import new_prefix
from anyserve.replica.process import WorkerProcess, describe_exit, start_worker

APP = """
import os, pathlib, time
import trio
from anyserve import App, Response

app = App()
note = pathlib.Path(os.environ["NOTE"])

@app.lifespan
async def life(app):
    yield
    await trio.sleep(float(os.environ.get("CLEANUP", 0)))
    note.write_text("cleaned up")

@app.capability("echo")
async def echo(request, context):
    return Response()
"""


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app in the worker's path, whose lifespan writes this file when it has cleaned up."""
    (tmp_path / "noting.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTE", str(tmp_path / "note"))
    return tmp_path / "note"


async def expect(channel: FrameChannel, kind: Kind) -> Frame:
    (frame,) = await channel.receive()
    assert frame.kind == kind
    return frame


async def load(worker: WorkerProcess) -> None:
    """Play the replica until the worker is ready."""
    setup = {
        "name": "worker test",
        "app": "noting:app",
        "options": {},
        "log_format": "text",
        "log_level": "info",
        "segment_prefix": new_prefix(),
    }
    worker.channel.send(frames.encode_json(Kind.SETUP, setup))
    await worker.channel.flush()
    await expect(worker.channel, Kind.DECLARED)
    worker.channel.send(frames.encode_json(Kind.LOAD, None))
    await worker.channel.flush()
    await expect(worker.channel, Kind.READY)


async def test_the_end_of_the_link_ends_the_worker_after_its_apps_clean_up(note: Path) -> None:
    async with start_worker(sys.executable) as worker:
        await load(worker)
        await worker.channel.aclose()
        assert await worker.wait() == "exited with status 0"
    assert await trio.Path(note).read_text() == "cleaned up"


async def test_a_clean_up_without_end_is_cut_off(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEANUP", "3600")
    async with start_worker(sys.executable) as worker:
        await load(worker)
        await worker.channel.aclose()
        assert await worker.wait() == "exited with status 0"  # by itself, not killed
    assert not await trio.Path(note).exists()


async def test_signals_for_the_group_do_not_reach_the_worker(note: Path) -> None:
    async with start_worker(sys.executable) as worker:
        await load(worker)
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        worker.channel.send(frames.encode(Kind.PING))
        await worker.channel.flush()
        await expect(worker.channel, Kind.PONG)


async def test_a_killed_worker_says_by_what(note: Path) -> None:
    async with start_worker(sys.executable) as worker:
        await load(worker)
        worker.kill()
        assert await worker.wait() == "was killed by SIGKILL"


def test_a_worker_whose_parent_is_another_process_does_not_stay() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = ["--fd", str(theirs.fileno()), "--parent", "1"]
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            [sys.executable, "-m", "anyserve.worker", *words],
            pass_fds=[theirs.fileno()],
            timeout=30,
            check=False,
        )
    assert done.returncode == 1


@pytest.mark.parametrize(
    "code, words",
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "was killed by SIGKILL"),
        (-11, "was killed by SIGSEGV"),
        (-35, "was killed by signal 35"),
    ],
)
def test_an_exit_status_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
