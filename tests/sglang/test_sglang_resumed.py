"""Streams of the real SGLang survive the death of the replica or of the server that gives them.

What is resumed is computed anew and in a batch of another size, so that its numbers differ in their
last digits. A greedy text is the same where no two tokens are about equally likely, as in one that
counts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from openai import OpenAI

from anyserve.client import open_client
from anyserve.http.settings import HttpConfig

pytestmark = pytest.mark.timeout(300)

PROMPT = "1, 2, 3, 4, 5, 6, 7, 8,"
TOKENS = 32


@pytest.fixture(scope="module")
def another(own: Callable[..., Any], interpreter: str) -> Iterator[Any]:
    """A second server of the same model, which ends with these tests."""
    server = own(interpreter)
    yield server
    server.owner.stop()


@attrs.define
class Told:
    """What a client was given."""

    text: str = ""
    ends: list[str] = attrs.field(factory=list)
    usage: list[int] = attrs.field(factory=list)
    """How many tokens the text had, each time that was said."""


@attrs.define(eq=False)
class Fleet:
    """A scheduler here, and replicas attached to one server each."""

    scheduler: Scheduler
    start_replica: Callable[..., Any]
    eventually_here: Callable[..., Any]

    async def start(self, id: str, server: Any) -> Any:
        """A replica that the scheduler knows."""
        app = f"anyserve.engines.sglang.app:attached?url=http://{server.address}"
        options = ("--scheduler", str(self.scheduler.address), "--replica-id", id)
        live = await trio.to_thread.run_sync(partial(self.start_replica, "--app", app, *options))
        await self.eventually_here(lambda: self.scheduler.links.get(id) is not None)
        return live

    async def by_grpc(self, told: Told) -> None:
        inputs = {"text_input": PROMPT, "stream": True}
        values = {"max_tokens": TOKENS, "temperature": 0.0}
        async with (
            open_client(str(self.scheduler.address)) as client,
            aclosing(client.generate("decode", inputs, values)) as responses,
        ):
            async for response in responses:
                told.text += response["text_output"][0].decode()
                told.usage.append(int(response["num_output_tokens"][0]))
                if reason := response["finish_reason"][0].decode():
                    told.ends.append(reason)

    async def by_openais_api(self, told: Told) -> None:
        await trio.to_thread.run_sync(self._complete, told)

    def _complete(self, told: Told) -> None:
        url = f"http://{self.scheduler.http_address}/v1"
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            chunks = client.completions.create(
                model="smol",
                prompt=PROMPT,
                temperature=0,
                max_tokens=TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in chunks:
                told.usage += [chunk.usage.completion_tokens] if chunk.usage else []
                for choice in chunk.choices:
                    told.text += choice.text
                    told.ends += [choice.finish_reason] if choice.finish_reason else []


@pytest.fixture
async def fleet(start_replica: Any, eventually_here: Any) -> AsyncIterator[Fleet]:
    # It hears of its replicas seldom: not by a lease, but by what is lost, it knows.
    terms = LeaseTerms(lease=100, interval=50)
    http = HttpConfig("127.0.0.1", 0)
    scheduler = Scheduler(SchedulerConfig(port=0, terms=terms, http=http))
    async with scheduler.running():
        yield Fleet(scheduler, start_replica, eventually_here)
        assert scheduler.ways.in_flight == 0


@pytest.mark.parametrize("victim", ["the replica", "its server"])
async def test_a_stream_survives_what_gives_it(
    fleet: Fleet, server: Any, another: Any, eventually_here: Any, victim: str
) -> None:
    whole = await trio.to_thread.run_sync(server.greedy, PROMPT, TOKENS)
    first = await fleet.start("a", another)
    tree = another.processes()
    grpc, openai = Told(), Told()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.by_grpc, grpc)
        nursery.start_soon(fleet.by_openais_api, openai)
        await eventually_here(lambda: len(grpc.usage) > 3 and openai.text)
        # It says no more, but is not lost yet; the other one is there before it is.
        stopped = first.process.pid if victim == "the replica" else another.scheduler()
        os.kill(stopped, signal.SIGSTOP)
        await fleet.start("b", server)
        assert not grpc.ends + openai.ends
        for pid in [stopped] if victim == "the replica" else tree:
            os.kill(pid, signal.SIGKILL)
    assert (grpc.text, grpc.ends, grpc.usage[-1]) == (whole, ["length"], TOKENS)
    assert grpc.usage == sorted(set(grpc.usage))
    assert openai == Told(whole, ["length"], [TOKENS])
    assert fleet.scheduler.ways.resumed == 2
    assert (first.process.poll() is None) == (victim == "its server")
