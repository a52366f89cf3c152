"""What an attached SGLang's texts cost through us: CPU time of a token, and time to the first one.

The time is measured with the real SGLang, on the CPU, against its own OpenAI API. That gives a few
tokens a second; what a token costs us is measured with its native API and no model behind it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import attrs

from benchmarks import chats, h2load, servers
from benchmarks.chat_client import answer_size, ask, first_token_times
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Post
from benchmarks.ports import free_port
from benchmarks.prepared import MESSAGES
from benchmarks.rounds import Case, measure
from benchmarks.servers import Server
from benchmarks.tables import number, table

IN_FLIGHT = (1, 8, 64)
FIRST_TOKENS = 20
"""Of a round and a server."""
_CALLS = 3
"""Streams of a round, at least."""
_START_TIMEOUT = 300.0
_MODEL = "smol"
_ARGS = (
    f"--device cpu --served-model-name {_MODEL} --attention-backend torch_native"
    " --disable-overlap-schedule --mem-fraction-static 0.3 --max-total-tokens 4096"
    " --max-running-requests 8 --disable-cuda-graph --log-level-http warning"
    " --incremental-streaming-output"
)
_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def run(rounds: int) -> None:
    """Print a table of the CPU time of tokens, and one of the time to the first."""
    h2load.check_installed()
    _print_tokens(rounds)
    print()
    python, model = (os.environ.get(f"ANYSERVE_SGLANG_{name}") for name in ("PYTHON", "MODEL"))
    if not python or not model:
        raise CannotMeasure(
            "no SGLang here: export $(python tests/sglang/environment.py) builds and names it"
        )
    with (
        _sglang(python, model) as sglang,
        # SGLang, which computes, has a core to itself.
        _attached(sglang.address, cores=servers.LOAD_CORE) as ours,
    ):
        _print_first_tokens(sglang, ours, rounds)


def _print_tokens(rounds: int) -> None:
    """CPU time of replica and worker, which share a core; SGLang's part is on the load's."""
    with (
        servers.sglang_mock() as mock,
        _tokenizer() as folder,
        _attached(mock.address, f"&tokenizer={folder}") as server,
    ):
        size = answer_size(server.address, MESSAGES, stream=True)
        cases = [
            Case(what, server, _streams(prompt, in_flight), size)
            for what, prompt in (
                ("5 ms, in step", f"{chats.PROMPT} ({chats.IN_STEP})"),
                ("5 ms, each alone", chats.PROMPT),
            )
            for in_flight in IN_FLIGHT
        ]
        results = measure(cases, rounds)
    rows = [
        [
            case.what,
            str(case.load.in_flight),
            number(figures.total_cpu_us),
            *(number(cpu) for cpu in figures.cpu_us.values()),
            number(figures.rate),
        ]
        for case, figures in results.items()
    ]
    print(table(["", "streams", "CPU µs/token", "replica", "worker", "token/s"], rows))


def _streams(prompt: str, in_flight: int) -> Post:
    body = chats.body(MESSAGES, stream=True, prompt=prompt)
    return Post(body, in_flight, max(in_flight, _CALLS), chats.PATH, MESSAGES)


def _print_first_tokens(sglang: Server, ours: Server, rounds: int) -> None:
    """The same chat of each in turn; it is in SGLang's cache."""
    body = chats.body(1, stream=True, model=_MODEL)
    direct: list[float] = []
    through: list[float] = []
    for turn in range(rounds + 1):
        print(f"first tokens, round {turn} of {rounds}", file=sys.stderr)
        pairs = zip(
            first_token_times(sglang.address, body, FIRST_TOKENS),
            first_token_times(ours.address, body, FIRST_TOKENS),
            strict=True,
        )
        for one, other in pairs:
            if turn:
                direct.append(1e3 * one)
                through.append(1e3 * other)
    added = [other - one for one, other in zip(direct, through, strict=True)]
    rows = [
        [sglang.name, number(median(direct)), ""],
        [ours.name, number(median(through)), number(median(added))],
    ]
    print(table(["first token", "p50 ms", "added"], rows))


@contextmanager
def _attached(
    address: str, options: str = "", cores: int = servers.SERVER_CORE
) -> Iterator[Server]:
    """A replica that is attached to the SGLang at `address`."""
    app = f"anyserve.engines.sglang.app:attached?url=http://{address}{options}"
    name = "AnyServe, attached"
    with servers.replica("--app", app, "--http", "0", name=name, cores=str(cores)) as server:
        yield attrs.evolve(server, address=server.http)


@contextmanager
def _sglang(python: str, model: str) -> Iterator[Server]:
    """The real one, once it answers."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    command = [
        *("env", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())),
        *(python, "-m", "sglang.launch_server", "--model-path", model, "--port", port),
        *shlex.split(_ARGS),
    ]
    with tempfile.TemporaryFile("w+") as log, servers.command(*command, log=log) as process:
        until = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                ask(address, chats.body(1, stream=False, model=_MODEL))
                break
            except CannotMeasure as error:
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise CannotMeasure(f"SGLang does not answer: {log.read()[-2000:]}") from error
                time.sleep(1)
        yield Server("SGLang itself", address, {}, log)


@contextmanager
def _tokenizer() -> Iterator[Path]:
    """A folder with what says how chats are written."""
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        yield folder
