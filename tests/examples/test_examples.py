"""Every example runs, as its first lines say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import trio

from anyserve.app import load_app
from anyserve.testing import open_test_client

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"


def load(name: str) -> ModuleType:
    """An example as a module, whatever it is called."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def infer(address: str, *arguments: str) -> str:
    """What `anyserve infer` prints."""
    command = [sys.executable, "-m", "anyserve", "infer", address, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        # These are run beside the tests of actors and of the scheduler.
        if example.stem not in ("actors_counter", "delegation", "on_demand"):
            assert example.stem in here


def test_the_pipeline_runs_in_one_replica(start_replica) -> None:
    live = start_replica("--app", "examples.pipeline:app")
    answer = infer(live.address, "describe", "text=the cat saw the dog")
    assert answer == "summary: the 2, cat 1, saw 1, dog 1\n"


def test_echo_streaming_the_slow_start_and_the_custom_engine_answer_the_command_line(
    start_replica,
) -> None:
    live = start_replica(
        *("--app", "examples.echo:app", "--app", "examples.streaming:app"),
        *("--app", "examples.slow_start:create_app", "--app", "examples.custom_engine:app"),
    )
    assert infer(live.address, "echo", "INPUT0=hello") == "OUTPUT0: hello\n"
    assert infer(live.address, "countdown", "start=2", "--stream") == (
        "number: 2\nnumber: 1\nnumber: 0\n"
    )
    assert infer(live.address, "classify", "text=what a lovely day") == "label: positive\n"
    shouted = infer(live.address, "decode", "text_input=one two", "--stream")
    pieces = [line for line in shouted.splitlines() if line.startswith("text_output")]
    assert pieces == ["text_output: ONE ", "text_output: TWO ", "text_output: "]


def test_the_shared_memory_client_gets_its_tensor_back(start_replica) -> None:
    live = start_replica("--app", "examples.echo:app")
    received = load("shared_memory").main(live.address)
    assert np.array_equal(received, np.arange(1 << 20, dtype=np.float32))


def test_the_text_and_embedding_clients_get_real_answers(start_replica) -> None:
    live = start_replica("--caps", "decode,embedding")
    assert "Paris" in load("text").main(live.address)
    cosines = load("embedding").main(live.address)
    assert cosines[0, 1] > cosines[0, 2]


async def test_a_cancelled_request_leaves_the_custom_engine() -> None:
    app = load_app("examples.custom_engine:app")
    async with open_test_client(app) as client:
        asked = {"max_tokens": 100_000, "stream": True}
        with trio.move_on_after(5) as scope:
            async for _ in client.generate("decode", {"text_input": "word " * 100_000}, asked):
                scope.cancel()
        again = await client.infer("decode", {"text_input": "again"})
        assert again["text_output"][0] == b"AGAIN "


async def test_the_custom_engine_is_short_and_resumes_its_texts() -> None:
    source = (EXAMPLES / "custom_engine.py").read_text()
    engine = source[source.index("class Capitals") : source.index("def model")]
    assert len(engine.splitlines()) < 60
    async with open_test_client(load_app("examples.custom_engine:app")) as client:
        asked = {"max_tokens": 3, "resume_token_ids": "[1, 2]", "return_token_ids": True}
        rest = await client.infer("decode", {"text_input": "one two three four"}, asked)
        assert rest["text_output"][0] == b"THREE "
        assert rest["token_ids"].tolist() == [3]
        assert (rest["finish_reason"][0], rest["num_output_tokens"].item()) == (b"length", 3)


@pytest.mark.parametrize("start, numbers", [(0, [0]), (3, [3, 2, 1, 0])])
async def test_the_countdown_gives_a_response_a_number(start: int, numbers: list[int]) -> None:
    app = load_app("examples.streaming:app")
    async with open_test_client(app) as client:
        found = [
            int(np.asarray(response.outputs["number"])[0])
            async for response in client.generate(
                "countdown", {"start": np.array([start], np.int32)}
            )
        ]
    assert found == numbers
