"""A real SGLang on the CPU, which one replica owns and another one is attached to.

It is slow: a few tokens a second. environment.py builds what it needs.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

ARGS = (
    "--device cpu --served-model-name smol --attention-backend torch_native"
    " --disable-overlap-schedule --mem-fraction-static 0.3 --max-total-tokens 4096"
    " --max-running-requests 8 --disable-cuda-graph --log-level-http warning"
    # Its figures would else be up to 15 tokens old, which take many seconds here.
    " --load-snapshot-publish-interval 1"
)
ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
}


@attrs.frozen
class Server:
    """SGLang's own HTTP API."""

    address: str

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
        """Requests that it runs or keeps waiting."""
        [load] = self.ask("/v1/loads?include=core")["loads"]
        count: int = load["num_running_reqs"] + load["num_waiting_reqs"]
        return count

    def until(self, idle: Callable[[], bool], within: float) -> float:
        """Ask until it is so; how many seconds that took."""
        began = time.monotonic()
        while not idle():
            assert time.monotonic() - began < within
            time.sleep(0.05)  # another program, which tells nobody
        return time.monotonic() - began


@pytest.fixture(scope="session")
def owner(start_session_replica: Any) -> Any:
    """A replica that owns an SGLang."""
    python, model = (os.environ.get(f"ANYSERVE_SGLANG_{name}") for name in ("PYTHON", "MODEL"))
    if not python or not model:
        pytest.skip("no SGLang here: see tests/sglang/environment.py")
    options = f"model={model}&python={python}&args={ARGS}&load_time=400"
    return start_session_replica(
        "--app", f"anyserve.engines.sglang.app:owned?{options}", "--http", "0"
    )


@pytest.fixture(scope="session")
def server(owner: Any) -> Server:
    found = re.findall(r"SGLang is started on (\S+),", owner.log_text())
    return Server(found[-1])


@pytest.fixture(scope="session")
def attached(start_session_replica: Any, server: Server) -> Any:
    """A replica that is attached to the same server."""
    app = f"anyserve.engines.sglang.app:attached?url=http://{server.address}"
    return start_session_replica("--app", app, "--http", "0")


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
