"""Streams whose replica is killed, between real processes: the client sees one stream."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import openai
import pytest
import trio
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from openai import OpenAI

from anyserve.capability import Attribute
from anyserve.client import open_client
from anyserve.errors import Unavailable
from anyserve.http.settings import HttpConfig
from anyserve.messages import Result

LOCAL = ("--caps", "decode")
SCRIPTED = ("--app", "scripted:create_app")
PROMPT = "The three primary colours are"
CHAT: Any = [{"role": "user", "content": "Name three colours, each with a reason."}]


@attrs.define(eq=False)
class Fleet:
    """A scheduler here, which hears of its replicas seldom, and replicas that can be killed."""

    scheduler: Scheduler
    start_replica: Callable[..., Any]
    eventually_here: Callable[..., Any]

    @property
    def door(self) -> str:
        return str(self.scheduler.address)

    @property
    def resumed(self) -> int:
        return self.scheduler.ways.resumed

    async def start(self, id: str, *options: str) -> Any:
        """A replica that the scheduler knows."""
        live = self.start_replica(*options, "--scheduler", self.door, "--replica-id", id)
        await self.eventually_here(lambda: self.scheduler.links.get(id) is not None)
        return live

    async def replace(self, live: Any, id: str, *options: str) -> Any:
        """Kill a replica with -9, and have another, which alone will go on."""
        os.kill(live.process.pid, signal.SIGSTOP)
        other = await self.start(id, *options)
        kill(live)
        return other


def kill(live: Any) -> None:
    os.kill(live.process.pid, signal.SIGKILL)


def children(live: Any) -> list[int]:
    """The process ids of a replica's workers."""
    pid = live.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
async def fleet(start_replica: Any, eventually_here: Any) -> AsyncIterator[Fleet]:
    terms = LeaseTerms(lease=100, interval=50)
    http = HttpConfig("127.0.0.1", 0)
    scheduler = Scheduler(SchedulerConfig(port=0, terms=terms, http=http))
    async with scheduler.running():
        yield Fleet(scheduler, start_replica, eventually_here)
        assert scheduler.ways.in_flight == 0
        assert scheduler.ways.room.free == type(scheduler.ways.room)().free


async def script(
    address: str, parameters: Mapping[str, Attribute] | None = None, **values: Any
) -> AsyncGenerator[Result, None]:
    """The responses to a request that says what its engine does."""
    async with open_client(address) as client:
        inputs = {"text_input": json.dumps(values), "stream": True}
        async with aclosing(client.generate("decode", inputs, parameters)) as responses:
            async for response in responses:
                yield response


def text(responses: list[Result]) -> str:
    return "".join(response.outputs["text_output"][0].decode() for response in responses)


def counts(responses: list[Result]) -> list[int]:
    return [int(response.outputs["num_output_tokens"][0]) for response in responses]


def reasons(responses: list[Result]) -> list[str]:
    """What the responses say of the text's end."""
    found = [response.outputs["finish_reason"][0].decode() for response in responses]
    return [reason for reason in found if reason]


async def collect(
    responses: AsyncIterator[Result],
    into: list[Result],
    after: Mapping[int, Callable[[], Awaitable[object]]] = MappingProxyType({}),
) -> None:
    """after: what happens after so many."""
    async for response in responses:
        into.append(response)
        if len(into) in after:
            await after[len(into)]()


@attrs.define
class Chat:
    """What OpenAI's client was given."""

    text: str = ""
    ends: list[str] = attrs.field(factory=list)
    tokens: int = 0
    error: str = ""


def chat(
    fleet: Fleet, model: str, messages: Any, at_five: Callable[[], Any] = lambda: None
) -> Chat:
    """A streamed chat; something happens after five pieces."""
    told = Chat()
    with OpenAI(base_url=f"http://{fleet.scheduler.http_address}/v1", api_key="none") as client:
        chunks = client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        try:
            for number, chunk in enumerate(chunks):
                told.tokens += chunk.usage.completion_tokens if chunk.usage else 0
                for choice in chunk.choices:
                    told.text += choice.delta.content or ""
                    told.ends += [choice.finish_reason] if choice.finish_reason else []
                if number == 5:
                    at_five()
        except openai.APIError as error:
            told.error = error.message
    return told


# A real model.


async def test_a_resumed_text_is_that_of_an_undisturbed_greedy_run(fleet: Fleet) -> None:
    live = await fleet.start("a", *LOCAL)
    inputs = {"text_input": PROMPT, "stream": True}
    values = {"max_tokens": 48, "temperature": 0.0}
    whole: list[Result] = []
    broken: list[Result] = []
    replace = partial(fleet.replace, live, "b", *LOCAL)
    async with open_client(fleet.door) as client:
        async with aclosing(client.generate("decode", inputs, values)) as responses:
            await collect(responses, whole)
        async with aclosing(client.generate("decode", inputs, values)) as responses:
            await collect(responses, broken, {5: replace})
    assert text(broken) == text(whole)
    assert counts(broken) == sorted(counts(broken))
    assert counts(broken)[-1] == counts(whole)[-1]
    assert reasons(broken) == reasons(whole)
    assert fleet.resumed == 1


async def test_so_is_that_of_a_chat_by_openais_api(fleet: Fleet) -> None:
    live = await fleet.start("a", *LOCAL)
    whole = await trio.to_thread.run_sync(chat, fleet, "decode", CHAT)
    broken = await trio.to_thread.run_sync(
        chat, fleet, "decode", CHAT, partial(trio.from_thread.run, fleet.replace, live, "b", *LOCAL)
    )
    assert broken == whole
    assert broken.ends == ["length"]
    assert fleet.resumed == 1


# An engine that does as it is told.


async def test_killed_before_it_said_anything_a_request_begins_anew(
    fleet: Fleet, eventually_here: Any
) -> None:
    live = await fleet.start("a", *SCRIPTED)
    responses: list[Result] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, script(fleet.door, pieces=["x", "y"], pause=1.5), responses)
        await eventually_here(lambda: fleet.scheduler.ways.in_flight)
        await fleet.replace(live, "b", *SCRIPTED)
    assert text(responses) == "xy"
    assert reasons(responses) == ["stop"]
    assert fleet.resumed == 1


async def test_killed_twice_it_ends_once_with_both_reasons(fleet: Fleet) -> None:
    first = await fleet.start("a", *SCRIPTED)
    second: list[Any] = []
    responses: list[Result] = []

    async def replace() -> None:
        second.append(await fleet.replace(first, "b", *SCRIPTED))

    async def kill_again() -> None:
        kill(second[0])

    told = script(fleet.door, pieces=list("abcdefgh"), pause=0.1)
    with pytest.raises(Unavailable, match=r"^a: .* lost.*; then b: .* lost"):
        await collect(told, responses, {2: replace, 4: kill_again})
    assert "abcdefgh".startswith(text(responses))
    assert fleet.resumed == 1


async def test_an_engine_that_is_gone_has_another_go_on(fleet: Fleet) -> None:
    await fleet.start("a", *SCRIPTED)
    await fleet.start("b", *SCRIPTED)
    responses: list[Result] = []
    told = script(fleet.door, pieces=["x", "y"], after="Unavailable")
    with pytest.raises(Unavailable, match=r": as the script says; then \w: as the script says"):
        await collect(told, responses)
    assert text(responses) == "xy"
    assert fleet.resumed == 1


async def test_a_worker_that_is_killed_loses_no_text(fleet: Fleet) -> None:
    live = await fleet.start("a", *SCRIPTED)
    responses: list[Result] = []

    async def kill_worker() -> None:
        await fleet.start("b", *SCRIPTED)
        (worker,) = children(live)
        os.kill(worker, signal.SIGKILL)

    told = script(fleet.door, pieces=list("abcdefghij" * 4), pause=0.2)
    await collect(told, responses, {2: kill_worker})
    assert text(responses) == "abcdefghij" * 4
    assert counts(responses) == [*range(1, 41), 40]
    assert fleet.resumed == 1


async def test_opted_out_a_stream_ends_with_its_replica(fleet: Fleet) -> None:
    live = await fleet.start("a", *SCRIPTED)
    await fleet.start("b", "--app", "twins:app", "--in-process")
    responses: list[Result] = []

    async def kill_it() -> None:
        kill(live)

    told = script(fleet.door, {"resume": False}, pieces=["x"] * 9, pause=0.2)
    with pytest.raises(Unavailable, match="lost"):
        await collect(told, responses, {1: kill_it})
    assert "token_ids" not in responses[0].outputs
    assert fleet.resumed == 0


async def test_a_client_that_goes_in_the_gap_leaves_nothing(
    fleet: Fleet, eventually_here: Any
) -> None:
    live = await fleet.start("a", *SCRIPTED)
    inputs = {"text_input": json.dumps({"pieces": ["x"] * 99, "pause": 0.1}), "stream": True}
    async with open_client(fleet.door) as client, client.stream() as responses:
        await responses.send("decode", inputs)
        await anext(responses)
        os.kill(live.process.pid, signal.SIGSTOP)
        other = await fleet.start("b", *SCRIPTED)
        os.kill(other.process.pid, signal.SIGSTOP)
        kill(live)
        await eventually_here(lambda: fleet.resumed)
    await eventually_here(lambda: not fleet.scheduler.ways.in_flight)
    os.kill(other.process.pid, signal.SIGCONT)
    assert text([each async for each in script(fleet.door, pieces=["free"])]) == "free"


async def test_a_slow_client_gets_each_piece_once(fleet: Fleet) -> None:
    live = await fleet.start("a", *SCRIPTED)
    pieces = [f"{number} " * 50 for number in range(3000)]
    responses: list[Result] = []
    replace = partial(fleet.replace, live, "b", *SCRIPTED)
    await collect(script(fleet.door, {"max_tokens": 3000}, pieces=pieces), responses, {3: replace})
    assert text(responses) == "".join(pieces)
    assert counts(responses) == [*range(1, 3001), 3000]
    assert fleet.resumed == 1


async def test_by_openais_api_a_second_loss_is_an_error_of_the_stream(fleet: Fleet) -> None:
    await fleet.start("a", *SCRIPTED)
    await fleet.start("b", *SCRIPTED)
    content = json.dumps({"pieces": ["x", "y"], "after": "Unavailable"})
    messages = [{"role": "user", "content": content}]
    told = await trio.to_thread.run_sync(chat, fleet, "scripted", messages)
    assert (told.text, told.ends) == ("xy", [])
    assert "as the script says; then" in told.error


def streamed(fleet: Fleet, chats: bool, own: Any, at_two: Callable[[], Any]) -> tuple[str, Any]:
    """What a scripted stream says, and the error that it ends with; something happens at two."""
    script = json.dumps({"pieces": list("abcdefghi"), "pause": 0.2})
    told = ""
    url = f"http://{fleet.scheduler.http_address}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        terms: Any = {"model": "scripted", "stream": True, "max_tokens": 9, "extra_body": own}
        if chats:
            messages = [{"role": "user", "content": script}]
            chunks: Any = client.chat.completions.create(messages=messages, **terms)
        else:
            chunks = client.completions.create(prompt=script, **terms)
        try:
            for chunk in chunks:
                (choice,) = chunk.choices
                told += (choice.delta.content or "") if chats else choice.text
                if told == "ab":
                    at_two()
        except openai.APIError as error:
            return told, error.body
    return told, None


@pytest.mark.parametrize("chats", [True, False], ids=["chat", "completion"])
async def test_by_openais_api_a_stream_goes_on_unless_it_opts_out(
    fleet: Fleet, chats: bool
) -> None:
    live = await fleet.start("a", *SCRIPTED)
    replaced: list[Any] = []

    async def replace() -> None:
        replaced.append(await fleet.replace(live, "b", *SCRIPTED))

    at_two = partial(trio.from_thread.run, replace)
    told, error = await trio.to_thread.run_sync(streamed, fleet, chats, {"resume": True}, at_two)
    assert (told, error, fleet.resumed) == ("abcdefghi", None, 1)
    (live,) = replaced
    at_two = partial(trio.from_thread.run, fleet.replace, live, "c", *SCRIPTED)
    told, error = await trio.to_thread.run_sync(streamed, fleet, chats, {"resume": False}, at_two)
    assert (told[:2], told == "abcdefghi") == ("ab", False)
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "lost" in error["message"]
    assert fleet.resumed == 1
