"""A real SGLang on the CPU, which one replica owns and another one is attached to.

It is slow: a few tokens a second. environment.py builds what it needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

ARGS = (
    "--device cpu --served-model-name smol --attention-backend torch_native"
    " --disable-overlap-schedule --mem-fraction-static 0.3 --max-total-tokens 4096"
    " --max-running-requests 8 --disable-cuda-graph --log-level-http warning"
    # Its figures would else be up to 15 tokens old, which take many seconds here.
    " --load-snapshot-publish-interval 1"
    # One that has nothing to do would else take a core to find that out.
    " --sleep-on-idle"
)
ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
}


@attrs.frozen
class Server:
    """An SGLang that a replica owns: its own HTTP API, and its processes."""

    owner: Any
    """The replica."""

    @property
    def address(self) -> str:
        """Of the one that was started last."""
        return re.findall(r"SGLang is started on (\S+),", self.owner.log_text())[-1]

    def processes(self) -> list[int]:
        """Of its server, which comes first, and of all that this has started."""
        guard = re.findall(r"guarded by process (\d+)", self.owner.log_text())[-1]
        above, found = [int(guard)], []
        while above:
            command = ["pgrep", "-P", str(above.pop())]
            children = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            above += (pids := [int(pid) for pid in children.stdout.split()])
            found += pids
        return found

    def scheduler(self) -> int:
        """The process that computes."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in self.processes()}
        [pid] = [pid for pid, command in commands.items() if "scheduler" in command]
        return pid

    def segments(self) -> set[Path]:
        """Of shared memory, with its load."""
        held = {path.resolve() for path in Path(f"/proc/{self.scheduler()}/fd").iterdir()}
        found = {path for path in held if path.name.startswith("sglang_loads_")}
        assert found
        return found

    def alive(self, pids: list[int]) -> list[int]:
        """Those of the processes that run."""
        states = {pid: Path(f"/proc/{pid}/status") for pid in pids}
        found = []
        for pid, status in states.items():
            with suppress(OSError):
                if "State:\tZ" not in status.read_text():
                    found.append(pid)
        return found

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = answer.read()
            return json.loads(said) if said else None

    def greedy(self, prompt: str, tokens: int) -> str:
        """What the server says itself."""
        how = {"max_new_tokens": tokens, "temperature": 0}
        text: str = self.ask("/generate", {"text": prompt, "sampling_params": how})["text"]
        return text

    def busy(self) -> int:
        """Requests that it runs or keeps waiting, as it was before what it computes now."""
        return self._load()[0]

    def idle(self, since: float) -> bool:
        """It has had nothing to do at some time after `since`, which is one of `time.time()`."""
        count, at = self._load()
        return count == 0 and at > since

    def _load(self) -> tuple[int, float]:
        """Requests that it has, and when it said so."""
        [load] = self.ask("/v1/loads?include=core")["loads"]
        return load["num_running_reqs"] + load["num_waiting_reqs"], load["timestamp"]

    def until(self, idle: Callable[[], bool], within: float) -> float:
        """Ask until it is so; how many seconds that took."""
        began = time.monotonic()
        while not idle():
            assert time.monotonic() - began < within
            time.sleep(0.05)  # another program, which tells nobody
        return time.monotonic() - began


@pytest.fixture(scope="session")
def interpreter() -> str:
    """The Python of an environment with SGLang."""
    python = os.environ.get("ANYSERVE_SGLANG_PYTHON")
    if not python or not os.environ.get("ANYSERVE_SGLANG_MODEL"):
        pytest.skip("no SGLang here: see tests/sglang/environment.py")
    return python


@pytest.fixture(scope="session")
def own(start_session_replica: Any) -> Callable[..., Server]:
    """Start a replica that owns an SGLang, with an interpreter and more options of SGLang's."""

    def start(python: str, args: str = "") -> Server:
        model = os.environ["ANYSERVE_SGLANG_MODEL"]
        options = f"model={model}&python={python}&args={ARGS} {args}&load_time=400"
        app = f"anyserve.engines.sglang.app:owned?{options}"
        return Server(start_session_replica("--app", app, "--http", "0"))

    return start


@pytest.fixture(scope="session")
def server(own: Callable[..., Server], interpreter: str) -> Server:
    return own(interpreter)


@pytest.fixture(scope="session")
def owner(server: Server) -> Any:
    """The replica that owns it."""
    return server.owner


@pytest.fixture(scope="session")
def attached(start_session_replica: Any, server: Server) -> Any:
    """A replica that is attached to the same server."""
    app = f"anyserve.engines.sglang.app:attached?url=http://{server.address}"
    return start_session_replica("--app", app, "--http", "0")


@pytest.fixture(scope="session")
def running() -> Callable[[Any], int]:
    """Tells how many requests hold a slot of a replica, as it counts them."""

    def count(replica: Any) -> int:
        with urllib.request.urlopen(f"http://{replica.http}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        each = re.findall(r"^anyserve_running_requests{.*} (\S+)$", metrics, re.M)
        return int(sum(map(float, each)))

    return count


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
