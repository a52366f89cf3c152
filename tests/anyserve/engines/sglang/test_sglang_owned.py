"""A server that the worker owns: real processes, which stand in for SGLang's."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from anyserve.engines.errors import CannotLoad
from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang import health, owned, process
from anyserve.engines.sglang.app import owned as owned_app
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.owned import OwnedSettings, open_owned
from anyserve.engines.sglang.process import ServerProcess, start_server
from anyserve.errors import Unavailable, innermost

# A server with a child in a session of its own; it speaks as much of the protocol as it takes to
# be attached to, and says which its processes are, and its segments of shared memory: the one with
# SGLang's load, which SGLang never removes, and a semaphore, which Python does.
SERVER = textwrap.dedent(
    """
    import http.server, json, multiprocessing, os, subprocess, sys, time, uuid
    if "--fails" in sys.argv:
        print("RuntimeError: out of memory"); sys.exit(3)
    deep = "import time; time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", deep], start_new_session=True)
    with open(os.environ["PIDS"], "a") as file:
        print(os.getpid(), child.pid, file=file)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    load = open(f"/dev/shm/sglang_loads_{uuid.uuid4().hex}.shm", "w")
    with open(os.environ["SEGMENTS"], "a") as file:
        print(load.name, f"/dev/shm/sem.{semaphore._semlock.name[1:]}", file=file)
    VALUES = {
        "/model_info": {"model_path": "/models/tiny"},
        "/server_info": {
            name[2:].replace("-", "_"): int(value) if value.isdigit() else value
            for name, value in zip(sys.argv, sys.argv[1:]) if name.startswith("--disagg")
        },
        "/v1/models": {"data": []}, "/v1/loads?include=core": {"loads": []},
    }
    TEXT = {"text": "Hi", "output_ids": [1], "meta_info": {"prompt_tokens": 1,
            "completion_tokens": 1, "finish_reason": {"type": "length"}}}
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self): self.answer(json.dumps(VALUES.get(self.path, {})).encode())
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(b"data: " + json.dumps(TEXT).encode() + b"\\n\\ndata: [DONE]\\n\\n")
        def answer(self, body):
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("The server is fired up and ready to roll!", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
    """
)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is called as `PYTHON -m sglang.launch_server ...`."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "launch_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("SEGMENTS", str(tmp_path / "segments"))
    return sys.executable


def pids(folder: Path) -> list[int]:
    """Of all servers and their children, in the order of their start."""
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def segments(folder: Path) -> list[bool]:
    """Of all servers, in the order of their start: which are there."""
    return [Path(path).exists() for path in (folder / "segments").read_text().split()]


async def until_gone(pids: list[int], within: float = 10.0) -> None:
    """Wait until no such process is left; each is waited for by its file descriptor."""
    with trio.fail_after(within):
        for pid in pids:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)


class Logged(logging.Handler):
    """What the engine has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""
        self._more = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.said += record.getMessage()
        self._more.set()
        self._more = trio.Event()

    async def until(self, words: str) -> None:
        with trio.fail_after(20):
            while words not in self.said:
                await self._more.wait()


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    log = logging.getLogger("anyserve.engines.sglang")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@asynccontextmanager
async def owning(python: str, *args: str) -> AsyncIterator[SglangEngine]:
    async with open_owned(OwnedSettings("tiny", python, args, load_time=30)) as engine:
        yield engine


async def first_line(server: ServerProcess) -> str:
    while not (lines := await server.read()):
        assert lines is not None, "it ended"
    return lines[0]


async def text(engine: SglangEngine) -> str:
    return "".join([d.text async for d in engine.generate("Say", Sampling())])


async def test_a_server_is_started_and_ended_with_all_that_it_started(
    python: str, tmp_path: Path
) -> None:
    async with owning(python) as engine:
        assert engine.about.model == "tiny"
        assert await text(engine) == "Hi"
        alive = pids(tmp_path)
        assert len(alive) == 2
        assert segments(tmp_path) == [True, True]
    await until_gone(alive, within=1)
    assert segments(tmp_path) == [False, False]


async def test_a_prefill_half_of_its_own_says_where_others_find_it(python: str) -> None:
    args = "--disaggregation-mode prefill --disaggregation-bootstrap-port 8998 --host 0.0.0.0"
    app = owned_app("tiny", python, args, bootstrap_host="10.0.0.1")
    async with app.running():
        attributes = app.handler("prefill").offer.capability.attributes
    assert (attributes["bootstrap_host"], attributes["bootstrap_port"]) == ("10.0.0.1", 8998)


async def test_a_server_that_ends_while_it_loads_says_why(python: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with owning(python, "--fails"):
            pass
    error = innermost(caught.value)
    assert isinstance(error, CannotLoad)
    assert error.message == (
        "SGLang ends while it loads: exit status 3; RuntimeError: out of memory"
    )


async def test_an_interpreter_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with owning(str(tmp_path / "nothing")):
            pass
    error = innermost(caught.value)
    assert isinstance(error, CannotLoad)
    assert "No such file" in error.message


async def test_a_server_that_dies_is_started_again(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    monkeypatch.setattr(health, "INTERVAL", 0.05)
    monkeypatch.setattr(owned, "_BACKOFF", owned.Backoff(initial=0.2))
    async with owning(python) as engine:
        first = pids(tmp_path)
        os.kill(first[0], signal.SIGKILL)
        await until_gone(first)  # its child too
        await logged.until("is being started again")
        with pytest.raises(Unavailable):
            await text(engine)
        await logged.until("serves again")
        assert await text(engine) == "Hi"
        assert len(pids(tmp_path)) == 4
        assert segments(tmp_path) == [False, False, True, True]
    await until_gone(pids(tmp_path))


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_worker_that_is_killed_leaves_nothing(
    python: str, tmp_path: Path, eventually_here: Any, stopped: bool
) -> None:
    worker = textwrap.dedent(
        f"""
        import trio
        from anyserve.engines.sglang.owned import OwnedSettings, open_owned
        async def main():
            async with open_owned(OwnedSettings("tiny", {python!r})):
                print("ready", flush=True)
                await trio.sleep_forever()
        trio.run(main)
        """
    )
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", worker], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        alive = pids(tmp_path)
        if stopped:  # a server that hears no SIGTERM
            os.kill(alive[0], signal.SIGSTOP)
        process.kill()
    await until_gone(alive)
    await eventually_here(lambda: not any(segments(tmp_path)))


async def test_a_guard_that_is_killed_takes_the_server_with_it(python: str, tmp_path: Path) -> None:
    waits = [python, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"]
    async with start_server(waits) as server:
        pid = await first_line(server)
        os.kill(server.pid, signal.SIGKILL)
        await until_gone([int(pid)])


async def test_a_server_that_does_not_hear_is_ended_in_time(
    python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)\n"
    async with start_server([python, "-c", f"{deaf}time.sleep(1000)"]) as server:
        await first_line(server)
        before = trio.current_time()
    assert trio.current_time() - before < process.STOP_TIME
