"""Prefill and decode on two scripted servers, by real replicas: they work, and end, as one."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from openai import OpenAI

from anyserve.client import open_client
from anyserve.engines.errors import CannotLoad
from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.discovery import serves
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.pool import EnginePool
from anyserve.errors import InvalidArgument, NotFound, Unavailable
from anyserve.http.settings import HttpConfig

PREFILL = {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 8998}
DECODE = {"disaggregation_mode": "decode"}
ROOM = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


@attrs.define(eq=False)
class Fleet:
    """A scheduler here, replicas in processes, and the scripted servers that they attach to."""

    scheduler: Scheduler
    start_replica: Callable[..., Any]
    serve: Callable[..., Awaitable[Any]]
    eventually_here: Callable[..., Awaitable[Any]]
    live: dict[str, Any] = attrs.field(factory=dict)

    @property
    def door(self) -> str:
        return str(self.scheduler.address)

    async def start(
        self, id: str, server: Any, *, alone: bool = False, tokenizer: Path | None = None
    ) -> Any:
        """A replica attached to a server; with the tokenizer's files its texts are resumable."""
        app = f"anyserve.engines.sglang.app:attached?url={server.url}"
        if tokenizer is not None:
            app += f"&tokenizer={tokenizer}"
        known = () if alone else ("--scheduler", self.door, "--replica-id", id)
        start = partial(self.start_replica, "--app", app, *known)
        self.live[id] = await trio.to_thread.run_sync(start)
        if not alone:
            await self.eventually_here(lambda: self.scheduler.links.get(id) is not None)
        return self.live[id]

    async def pair(self) -> tuple[Any, Any]:
        """The servers of a prefill and a decode half, with their replicas."""
        servers = await self.serve(**PREFILL), await self.serve(**DECODE)
        servers[1].generate = partial(follows, *servers)
        for id, server in zip(("p", "d"), servers, strict=True):
            await self.start(id, server)
        return servers

    @property
    def sent(self) -> dict[str, int]:
        """Requests that each replica has, as the scheduler's router counts them."""
        candidates = self.scheduler.ways.router._known.candidates
        return {key[0]: each.open for key, each in candidates._in_flight.items() if each.open}


@pytest.fixture
async def fleet(start_replica: Any, serve: Any, eventually_here: Any) -> AsyncIterator[Fleet]:
    terms = LeaseTerms(lease=100, interval=50)
    http = HttpConfig("127.0.0.1", 0)
    scheduler = Scheduler(SchedulerConfig(port=0, terms=terms, http=http))
    async with scheduler.running():
        fleet = Fleet(scheduler, start_replica, serve, eventually_here)
        yield fleet
        assert scheduler.ways.in_flight == 0
        assert fleet.sent == {}


async def follows(prefill: Any, decode: Any, asked: Any) -> None:
    """As a decode half does, answer once the prompt is computed in the same room."""
    times = 1
    while where(asked.body) not in map(where, prefill.bodies("/generate")):
        await prefill.until_asked("/generate", times)
        times = len(prefill.bodies("/generate")) + 1
    await asked.events(decode.piece("Hel", [1]), decode.piece("Hello!", [1, 2, 3], "stop"))


def where(body: Any) -> tuple[Any, ...]:
    return tuple(body.get(name) for name in ROOM)


async def say(address: str, pieces: list[str], **parameters: Any) -> None:
    async with open_client(address) as client:
        inputs = {"text_input": "Say", "stream": True}
        async with aclosing(client.generate("decode", inputs, parameters)) as responses:
            async for response in responses:
                text = response.outputs["text_output"][0].decode()
                pieces.append(text)


async def said(address: str, **parameters: Any) -> str:
    pieces: list[str] = []
    with trio.fail_after(20):
        await say(address, pieces, **parameters)
    return "".join(pieces)


async def test_both_halves_are_asked_the_same_in_one_room_of_their_own(fleet: Fleet) -> None:
    prefill, decode = await fleet.pair()
    prefill.generate = lambda asked: asked.events(prefill.piece("Dropped", [7], "length"))
    assert await said(fleet.door) == "Hello!"
    assert await said(fleet.door) == "Hello!"
    bodies = [(prefill.bodies("/generate")[n], decode.bodies("/generate")[n]) for n in range(2)]
    for first, second in bodies:
        assert where(first) == where(second)
        assert where(first)[:2] == ("127.0.0.1", 8998)
        assert 0 <= first["bootstrap_room"] < 1 << 63
        assert {**first, "rid": ""} == {**second, "rid": ""}
    assert bodies[0][0]["bootstrap_room"] != bodies[1][0]["bootstrap_room"]


async def test_several_texts_have_a_room_each(fleet: Fleet) -> None:
    prefill, decode = await fleet.pair()
    await said(fleet.door, n=3)
    rooms = [
        sorted(body["bootstrap_room"] for body in server.bodies("/generate"))
        for server in (prefill, decode)
    ]
    assert rooms[0] == rooms[1]
    assert len(set(rooms[0])) == 3


async def test_openais_api_lists_the_model_once_and_asks_the_pair(fleet: Fleet) -> None:
    prefill, decode = await fleet.pair()

    def ask() -> tuple[list[str], str]:
        url = f"http://{fleet.scheduler.http_address}/v1"
        with OpenAI(base_url=url, api_key="none") as client:
            models = [model.id for model in client.models.list()]
            text = client.completions.create(model="tiny", prompt="Say").choices[0].text
            return models, text

    assert await trio.to_thread.run_sync(ask) == (["tiny", "decode"], "Hello!")
    assert len(prefill.bodies("/generate")) == len(decode.bodies("/generate")) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_has_both_engines_give_up(
    fleet: Fleet, begun: bool, eventually_here: Any
) -> None:
    prefill, decode = await fleet.pair()
    pieces: list[str] = []

    async def waits(server: Any, asked: Any) -> None:
        await server.until_aborted(asked.body["rid"])
        await asked.events(server.piece("", [], "abort"))

    prefill.generate = partial(waits, prefill)
    decode.generate = decode.gives_up if begun else partial(waits, decode)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, fleet.door, pieces)
        await prefill.until_asked("/generate")
        await decode.until_asked("/generate")
        await eventually_here(lambda: pieces == ["On"] * begun)
        assert fleet.sent == {"p": 1, "d": 1}
        nursery.cancel_scope.cancel()
    for server in (prefill, decode):
        with trio.fail_after(10):
            await server.until_aborted(server.bodies("/generate")[0]["rid"])


async def test_a_prefill_half_that_is_done_is_free_while_the_text_goes_on(
    fleet: Fleet, eventually_here: Any
) -> None:
    _, decode = await fleet.pair()
    decode.generate = decode.gives_up
    pieces: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, fleet.door, pieces)
        await eventually_here(lambda: fleet.sent == {"d": 1} and pieces)
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        await decode.until_aborted(decode.bodies("/generate")[0]["rid"])


@pytest.mark.parametrize("failing", ["p", "d"])
async def test_an_engine_that_fails_ends_its_request_at_the_other(
    fleet: Fleet, failing: str
) -> None:
    prefill, decode = await fleet.pair()
    broken, other = (prefill, decode) if failing == "p" else (decode, prefill)

    async def waits(asked: Any) -> None:
        await other.until_aborted(asked.body["rid"])
        await asked.events(other.piece("", [], "abort"))

    async def breaks(asked: Any) -> None:
        await other.until_asked("/generate")
        await asked.answer({"error": {"message": "lost connection"}}, 500)

    broken.generate, other.generate = breaks, waits
    with pytest.raises(Unavailable, match="lost connection"):
        await said(fleet.door)
    with trio.fail_after(10):
        await other.until_aborted(other.bodies("/generate")[0]["rid"])


@pytest.mark.parametrize("killed", ["p", "d"])
async def test_a_half_that_is_killed_ends_its_request_at_the_other(
    fleet: Fleet, killed: str
) -> None:
    prefill, decode = await fleet.pair()
    other = decode if killed == "p" else prefill

    async def waits(server: Any, asked: Any) -> None:
        await server.until_aborted(asked.body["rid"])
        await asked.events(server.piece("", [], "abort"))

    prefill.generate, decode.generate = partial(waits, prefill), partial(waits, decode)

    async def kill() -> None:
        await prefill.until_asked("/generate")
        await decode.until_asked("/generate")
        os.kill(fleet.live[killed].process.pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with pytest.raises(Unavailable):
            await said(fleet.door)
    with trio.fail_after(10):
        await other.until_aborted(other.bodies("/generate")[0]["rid"])


async def test_a_text_whose_decode_half_is_killed_goes_on_at_another_pair(
    fleet: Fleet, tmp_path: Path, eventually_here: Any
) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    prefill, first, second = (
        await fleet.serve(**PREFILL),
        await fleet.serve(**DECODE),
        await fleet.serve(**DECODE),
    )
    first.generate, second.generate = first.gives_up, partial(follows, prefill, second)
    await fleet.start("p", prefill)
    await fleet.start("d", first, tokenizer=tmp_path)
    pieces: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, fleet.door, pieces)
        await eventually_here(lambda: pieces)
        await fleet.start("e", second, tokenizer=tmp_path)
        os.kill(fleet.live["d"].process.pid, signal.SIGKILL)
    assert pieces == ["On", "Hel", "lo!"]
    bodies = [first.bodies("/generate")[0], *second.bodies("/generate")]
    assert [where(body) for body in bodies] == [where(body) for body in prefill.bodies("/generate")]
    assert len({where(body) for body in bodies}) == 2
    assert bodies[1]["input_ids"][-1] == 1
    assert prefill.bodies("/generate")[1]["input_ids"] == bodies[1]["input_ids"]


async def test_without_its_other_half_a_request_goes_to_a_whole_or_is_refused(
    fleet: Fleet,
) -> None:
    decode = await fleet.serve(**DECODE)
    await fleet.start("d", decode)
    with pytest.raises(Unavailable, match="served by pairs, and none can take it"):
        await said(fleet.door)
    whole = await fleet.serve()
    await fleet.start("x", whole)
    assert await said(fleet.door) == "Hello!"
    assert len(whole.bodies("/generate")) == 1
    assert decode.bodies("/generate") == []


async def test_a_half_asked_directly_has_the_scheduler_find_the_other(fleet: Fleet) -> None:
    prefill, decode = await fleet.pair()
    assert await said(fleet.live["d"].address) == "Hello!"
    (first,), (second,) = prefill.bodies("/generate"), decode.bodies("/generate")
    assert where(first) == where(second)


async def test_alone_a_half_refuses_in_words(fleet: Fleet) -> None:
    decode = await fleet.serve(**DECODE)
    live = await fleet.start("d", decode, alone=True)
    with pytest.raises(Unavailable, match="half of a pair here"):
        await said(live.address)
    forged = dict(zip(ROOM, ("evil.example", 1, 2), strict=True))
    with pytest.raises(InvalidArgument, match="bootstrap_host: only the scheduler"):
        await said(live.address, **forged)
    assert decode.bodies("/generate") == []


async def test_clients_have_no_say_in_where_halves_meet(fleet: Fleet) -> None:
    prefill, decode = await fleet.pair()
    for address in (fleet.door, fleet.live["d"].address):
        with pytest.raises(InvalidArgument, match="bootstrap_room: only the scheduler"):
            await said(address, bootstrap_room=5)
    with pytest.raises((NotFound, Unavailable)):
        async with open_client(fleet.door) as client:
            await client.infer("prefill", {"text_input": "Say"})
    assert prefill.bodies("/generate") == decode.bodies("/generate") == []


# What the server says of itself.


async def test_a_half_says_so_in_its_offer(serve: Any) -> None:
    for options in (PREFILL, DECODE):
        server = await serve(**options)
        client = Client(parse_url(server.url))
        async with SglangEngine.attached(client, within=5, bootstrap_host="10.0.0.1") as engine:
            assert engine.about.attributes == (
                {
                    "disaggregation": "prefill",
                    "bootstrap_host": "10.0.0.1",
                    "bootstrap_port": 8998,
                }
                if options is PREFILL
                else {"disaggregation": "decode"}
            )
        kind = await trio.to_thread.run_sync(serves, server.url, None, 5)
        assert kind == options["disaggregation_mode"]


async def test_halves_are_no_pool(serve: Any) -> None:
    openers = []
    for _ in range(2):
        server = await serve(**DECODE)
        openers.append(partial(SglangEngine.attached, Client(parse_url(server.url)), within=5))
    with pytest.RaisesGroup(
        pytest.RaisesExc(CannotLoad, match="one url each"), flatten_subgroups=True
    ):
        async with EnginePool.open(openers):
            pass
