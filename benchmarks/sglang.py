"""What an attached SGLang's texts cost through us: CPU time of a token, and time to the first one.

Beside SGLang's own OpenAI API, which the real SGLang serves on the CPU. With the model that it has
in the tests that gives a few tokens a second; for the cost of a token it has one of a single layer
and random weights, so that it is its server that is busy.
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

from anyserve.engines.sglang import guard
from benchmarks import chats, h2load, proc, servers
from benchmarks.chat_client import ask, first_token_times
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Post
from benchmarks.ports import free_port
from benchmarks.prepared import MESSAGES
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server
from benchmarks.tables import number, table

CALLS = {1: 2, 8: 16, 64: 64}
"""Streams of a round, by how many there are at once."""
FIRST_TOKENS = 20
"""Of a round and a server."""
_START_TIMEOUT = 300.0
_MODEL = "smol"
_ARGS = (
    f"--device cpu --served-model-name {_MODEL} --attention-backend torch_native"
    " --disable-overlap-schedule --mem-fraction-static 0.3 --max-total-tokens 32768"
    " --max-running-requests 64 --disable-cuda-graph --log-level-http warning"
    " --incremental-streaming-output --sleep-on-idle"
)
_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
_LAYER = {
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}


def run(rounds: int) -> None:
    """Print a table of the CPU time of tokens, and one of the time to the first."""
    h2load.check_installed()
    python, model = (os.environ.get(f"ANYSERVE_SGLANG_{name}") for name in ("PYTHON", "MODEL"))
    if not python or not model:
        raise CannotMeasure(
            "no SGLang here: export $(python tests/sglang/environment.py) builds and names it"
        )
    with _one_layer(Path(model)) as small, _sglang(python, small, "--load-format dummy") as sglang:
        _print_tokens(sglang, rounds)
    print()
    with _sglang(python, model) as sglang, _attached(sglang) as ours:
        _print_first_tokens(sglang, ours, rounds)


def _print_tokens(sglang: Server, rounds: int) -> None:
    """CPU time of ours and of SGLang's HTTP server; what computes does the same for all."""
    with _attached(sglang) as ours, _attached(sglang, "--in-process") as in_process:
        everyone = (sglang, ours, in_process)
        cases = [
            Case(f"{count} at once", server, _streams(count), None)
            for count in CALLS
            for server in everyone
        ]
        print_table(measure(cases, rounds), baseline=sglang, unit="token")


def _streams(count: int) -> Post:
    """Texts of as many tokens as are asked for, whatever the model says."""
    body = json.loads(chats.body(MESSAGES, stream=True, model=_MODEL))
    asked = json.dumps({**body, "ignore_eos": True}).encode()
    return Post(asked, count, CALLS[count], chats.PATH, MESSAGES)


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
def _attached(sglang: Server, *options: str) -> Iterator[Server]:
    """A replica that is attached to that SGLang, which has a core to itself."""
    app = f"anyserve.engines.sglang.app:attached?url=http://{sglang.address}"
    name = "AnyServe, in process" if options else "AnyServe, attached"
    arguments = ("--app", app, "--http", "0", *options)
    with servers.replica(*arguments, name=name, cores=str(servers.LOAD_CORE)) as server:
        processes = {**sglang.processes, **server.processes}
        yield attrs.evolve(server, address=server.http, processes=processes)


@contextmanager
def _sglang(python: str, model: str, options: str = "") -> Iterator[Server]:
    """The real one, once it answers. Of its processes the one counts that speaks HTTP."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    command = [
        *("env", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())),
        *(sys.executable, guard.__file__),  # it leaves nothing of SGLang behind
        *(python, "-m", "sglang.launch_server", "--model-path", model, "--port", port),
        *shlex.split(f"{_ARGS} {options}"),
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
        _, sglang, *_ = proc.family(process.pid).values()
        yield Server("SGLang itself", address, {"SGLang": sglang}, log)


@contextmanager
def _one_layer(model: Path) -> Iterator[str]:
    """A folder with that model but for its weights, cut to one small layer."""
    with tempfile.TemporaryDirectory() as name:
        for file in model.iterdir():
            if file.suffix != ".safetensors" and file.name != "config.json":
                Path(name, file.name).symlink_to(file)
        config = json.loads((model / "config.json").read_text())
        Path(name, "config.json").write_text(json.dumps({**config, **_LAYER}))
        yield name
