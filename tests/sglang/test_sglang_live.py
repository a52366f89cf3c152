"""The real SGLang, owned by one replica and attached to by another: texts, aborts, deaths."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import numpy as np
import openai
import pytest
import trio
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from anyserve.client import Client, open_client
from anyserve.engines.interface import Delta
from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang.client import Client as Server
from anyserve.engines.sglang.client import parse_url
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.errors import Unavailable

pytestmark = pytest.mark.timeout(600)

CAPITAL = "The capital of France is"
EMOJI = "Say hello to 你好 😀🎉: 😀🎉😀🎉"


def ask(replica: Any, prompt: str, **parameters: Any) -> str:
    """One text by tritonclient."""
    data = InferInput("text_input", [1], "BYTES")
    data.set_data_from_numpy(np.array([prompt.encode()], np.object_))
    said: list[Any] = []
    timeout = parameters.pop("timeout", 60)
    with InferenceServerClient(replica.address) as client:
        client.start_stream(lambda result, error: said.append(error or result), timeout)
        client.async_stream_infer(
            "decode", [data], parameters=parameters, enable_empty_final_response=True
        )
        client.stop_stream()
    for result in said:
        if isinstance(result, InferenceServerException):
            raise result
    texts = [result.as_numpy("text_output") for result in said]
    return "".join(text[0].decode() for text in texts if text is not None)


async def deltas(engine: SglangEngine, prompt: str, **sampling: Any) -> list[Delta]:
    resume = sampling.pop("resume", ())
    return [d async for d in engine.generate(prompt, Sampling(**sampling), resume=resume)]


def test_greedy_text_is_what_sglang_says_itself(owner: Any, attached: Any, server: Any) -> None:
    expected = server.greedy(CAPITAL, 6)
    assert "Paris" in expected
    assert ask(owner, CAPITAL, max_tokens=6) == expected
    assert ask(attached, CAPITAL, max_tokens=6, stream=True) == expected


def test_the_openai_client_chats_with_it(attached: Any) -> None:
    with openai.OpenAI(base_url=f"http://{attached.http}/v1", api_key="none") as client:
        assert "smol" in [model.id for model in client.models.list()]
        stream = client.chat.completions.create(
            model="smol",
            messages=[{"role": "user", "content": "Say yes."}],
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        *chunks, last = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert last.usage is not None
        assert last.usage.completion_tokens == 4


async def test_what_is_asked_for_is_kept_to(server: Any) -> None:
    async with SglangEngine.attached(Server(parse_url(server.address)), within=5) as engine:
        choice = await deltas(engine, "The answer is ", regex="(never|always)", max_tokens=8)
        assert re.fullmatch("never|always", "".join(d.text for d in choice))
        schema = json.dumps({"type": "object", "properties": {}, "additionalProperties": False})
        made = await deltas(engine, "JSON:", json_schema=schema, max_tokens=12)
        assert json.loads("".join(d.text for d in made)) == {}
        told = await deltas(engine, CAPITAL, logprobs=True, top_logprobs=2, max_tokens=1)
        [likely] = told[0].logprobs
        assert likely.token.decode() == told[0].text
        assert len(likely.top) == 2
        stopped = await deltas(engine, "1 2 3 4 5 6 7", stop=("9",), max_tokens=12)
        assert "9" not in "".join(d.text for d in stopped)
        assert stopped[-1].finish_reason == "stop"


async def test_characters_stay_whole_and_a_text_goes_on_where_it_broke_off(server: Any) -> None:
    async with SglangEngine.attached(Server(parse_url(server.address)), within=5) as engine:
        whole = await deltas(engine, EMOJI, max_tokens=6, return_token_ids=True)
        text = "".join(d.text for d in whole)
        assert "🎉" in text
        assert "�" not in text
        for count in range(1, len(whole)):
            ids = [token for d in whole[:count] for token in d.token_ids]
            rest = await deltas(engine, EMOJI, max_tokens=6, resume=ids)
            assert "".join(d.text for d in whole[:count] + rest) == text
            assert rest[-1].usage.output_tokens == whole[-1].usage.output_tokens
            assert rest[-1].usage.prompt_tokens == whole[-1].usage.prompt_tokens


def test_a_deadline_reaches_sglang(attached: Any, server: Any) -> None:
    with pytest.raises(InferenceServerException, match="Deadline"):
        ask(attached, "Once", max_tokens=1000, ignore_eos=True, stream=True, timeout=1.5)
    server.until(lambda: server.busy() == 0, within=5)


def test_a_replica_attaches_in_its_own_process_too(start_replica: Any, server: Any) -> None:
    app = f"anyserve.engines.sglang.app:attached?url=http://{server.address}"
    replica = start_replica("--app", app, "--in-process")
    assert ask(replica, CAPITAL, max_tokens=6, stream=True) == server.greedy(CAPITAL, 6)
    with pytest.raises(InferenceServerException, match="Deadline"):
        ask(replica, "Once", max_tokens=1000, ignore_eos=True, stream=True, timeout=1.5)
    server.until(lambda: server.busy() == 0, within=5)


async def test_what_others_have_it_do_is_told_apart_from_what_is_ours(server: Any) -> None:
    how = {"max_new_tokens": 1000, "ignore_eos": True}
    others = [{"text": f"No {i}", "rid": f"other-{i}", "sampling_params": how} for i in range(3)]
    async with SglangEngine.attached(Server(parse_url(server.address)), within=5) as engine:

        async def until(count: int) -> None:
            with trio.fail_after(15):
                while engine.others() != count:  # noqa: ASYNC110 - another program
                    await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                ours = partial(deltas, engine, f"Mine {number}", max_tokens=1000, ignore_eos=True)
                nursery.start_soon(ours)
            for body in others:
                nursery.start_soon(trio.to_thread.run_sync, server.ask, "/generate", body)
            try:
                await until(3)
            finally:
                for body in others:
                    server.ask("/abort_request", {"rid": body["rid"]})
            await until(0)
            assert server.busy() == 2
            nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(lambda: server.until(lambda: server.busy() == 0, within=5))


def ready(replica: Any) -> bool:
    with InferenceServerClient(replica.address) as client:
        is_ready: bool = client.is_model_ready("decode")
        return is_ready


def serves(replica: Any) -> bool:
    with suppress(InferenceServerException):
        return "Paris" in ask(replica, CAPITAL, max_tokens=2)
    return False


def test_a_server_that_hangs_is_unavailable_until_it_goes_on(attached: Any, server: Any) -> None:
    [main, *_] = server.processes()
    os.kill(main, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(InferenceServerException, match=r"SGLang .*(lost|reached|started)"):
            ask(attached, CAPITAL, max_tokens=2)
        assert time.monotonic() - began < 20
        server.until(lambda: not ready(attached), within=5)
    finally:
        os.kill(main, signal.SIGCONT)
    server.until(lambda: serves(attached), within=30)


async def hear(client: Client, prompt: str, pieces: list[str]) -> None:
    """A text that goes on until something ends it."""
    asked = {"max_tokens": 400, "ignore_eos": True, "stream": True}
    async with aclosing(client.generate("decode", {"text_input": prompt}, asked)) as said:
        async for result in said:
            pieces += [result["text_output"][0].decode()]


async def say(replica: Any, prompt: str, pieces: list[str]) -> None:
    async with open_client(replica.address) as client:
        await hear(client, prompt, pieces)


async def is_lost(replica: Any, prompt: str, pieces: list[str]) -> None:
    with pytest.raises(Unavailable, match=r"SGLang .*(lost|reached|started)"):
        await say(replica, prompt, pieces)


def workers(*replicas: Any) -> list[str]:
    """The process ids of their workers, also of those that have been."""
    return [pid for r in replicas for pid in re.findall(r"ready in process (\d+)", r.log_text())]


@pytest.mark.parametrize("begun", [False, True], ids=["before the first token", "begun"])
async def test_a_storm_of_cancels_leaves_every_slot_free_within_a_second(
    attached: Any, server: Any, running: Any, eventually_here: Any, begun: bool
) -> None:
    pieces: list[list[str]] = [[] for _ in range(200)]
    async with open_client(attached.address) as client:
        with trio.CancelScope() as storm:
            async with trio.open_nursery() as nursery:
                for index, heard in enumerate(pieces):
                    nursery.start_soon(hear, client, f"No {index}", heard)
                await eventually_here(lambda: running(attached) == 8)
                await eventually_here(lambda: not begun or sum(map(bool, pieces)) == 8)
                storm.cancel()
                cancelled = trio.current_time()
        await trio.to_thread.run_sync(
            lambda: server.until(lambda: server.busy() == running(attached) == 0, within=10)
        )
        assert trio.current_time() - cancelled < 1


@pytest.mark.parametrize("victim", ["SGLang's server", "its scheduler"])
async def test_texts_of_a_server_that_is_killed_are_unavailable_and_it_comes_back(
    owner: Any, attached: Any, server: Any, victim: str, running: Any, eventually_here: Any
) -> None:
    before, same = server.processes(), workers(owner, attached)
    scheduler, segments = server.scheduler(), server.segments()
    replicas = {"owned": owner, "attached": attached}
    begun: dict[str, list[str]] = {name: [] for name in replicas}
    waiting: dict[str, list[str]] = {name: [] for name in replicas}
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name, replica in replicas.items():
                nursery.start_soon(is_lost, replica, "Once", begun[name])
            await eventually_here(lambda: all(begun.values()))
            os.kill(scheduler, signal.SIGSTOP)  # from now on nobody gets a first token
            for name, replica in replicas.items():
                nursery.start_soon(is_lost, replica, "Twice", waiting[name])
            await eventually_here(lambda: all(running(r) == 2 for r in replicas.values()))
            os.kill(before[0] if victim == "SGLang's server" else scheduler, signal.SIGKILL)
            killed = trio.current_time()
        assert trio.current_time() - killed < 15
    assert not any(waiting.values())
    await trio.to_thread.run_sync(
        lambda: server.until(lambda: serves(attached) and serves(owner), within=180)
    )
    assert server.alive(before) == []
    assert not any(segment.exists() for segment in segments)
    assert workers(owner, attached) == same


async def test_a_worker_that_is_killed_leaves_nothing_of_its_server_and_another_starts_one(
    owner: Any, server: Any, eventually_here: Any
) -> None:
    before, segments, pieces = server.processes(), server.segments(), list[str]()
    [worker] = workers(owner)

    async def is_lost_with_it() -> None:
        with pytest.raises(Unavailable, match="worker"):
            await say(owner, "Once", pieces)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(is_lost_with_it)
        await eventually_here(lambda: pieces)
        os.kill(int(worker), signal.SIGKILL)
    await eventually_here(lambda: not server.alive(before))
    await eventually_here(lambda: not any(segment.exists() for segment in segments))
    await trio.to_thread.run_sync(lambda: server.until(lambda: serves(owner), within=180))
    assert len(workers(owner)) == 2
