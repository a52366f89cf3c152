"""Any engine becomes an app: what it obeys reaches it, what it can't do is refused by name."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs
import numpy as np
import pytest
import trio
import trio.testing

from anyserve.client import Result
from anyserve.engines.interface import About, Delta, Engine, TokenLogprob, Usage, Vectors
from anyserve.engines.prompts import Chat, Prompt
from anyserve.engines.sampling import NAMES, Sampling
from anyserve.engines.serving import WATCH_INTERVAL, embedding_app, text_app
from anyserve.errors import AnyServeError, Internal, InvalidArgument, Unavailable, Unimplemented
from anyserve.offers import Offer
from anyserve.replica.reports import standing
from anyserve.testing import TestClient, open_test_client

PLAIN = About(model="script", max_context=64)
ABLE = attrs.evolve(
    PLAIN,
    sampling=frozenset(NAMES),
    chat=True,
    tools=True,
    resumable=True,
    slots=5,
    attributes={"fast": True},
)


@attrs.define(eq=False)
class Script(Engine):
    """Says "a", "b" and "c", and keeps what it was asked for."""

    about: About
    asked: list[tuple[Prompt, Sampling, tuple[int, ...]]] = attrs.field(factory=list)
    running: int = 0
    endless: bool = False
    fails: bool = False

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        self.asked.append((prompt, sampling, tuple(resume)))
        self.running += 1
        try:
            await trio.lowlevel.checkpoint()
            for index in range(sampling.n):
                for number, text in enumerate("abc", 1):
                    if self.endless and number == 2:
                        await trio.sleep_forever()
                    if self.fails and number == 2:
                        raise Internal("broken")
                    likely = TokenLogprob(number, text.encode(), -0.5)
                    yield Delta(
                        text,
                        Usage(7, number, 3),
                        "stop" if number == 3 else None,
                        token_ids=(number,) if sampling.return_token_ids else (),
                        index=index,
                        logprobs=(attrs.evolve(likely, top=(likely,)),) * sampling.logprobs,
                    )
        finally:
            self.running -= 1

    async def embed(self, texts: Sequence[str]) -> Vectors:
        return np.array([[len(text), 1] for text in texts], np.float32)


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[TestClient]:
    @asynccontextmanager
    async def open_engine() -> AsyncIterator[Engine]:
        yield engine

    async with open_test_client(text_app(open_engine)) as client:
        yield client


async def generate(engine: Engine, **parameters: Any) -> list[Result]:
    async with serving(engine) as client:
        return [r async for r in client.generate("decode", {"text_input": "p"}, parameters)]


async def refused(
    engine: Engine,
    kind: type[AnyServeError],
    inputs: dict[str, Any] | None = None,
    **parameters: Any,
) -> str:
    """What the error says that the request ends in."""
    async with serving(engine) as client:
        # Inside, since leaving would put the error into a group.
        with pytest.raises(kind) as caught:
            await client.infer("decode", inputs or {"text_input": "p"}, parameters)
    return caught.value.message


def texts(results: list[Result]) -> list[str]:
    return [result["text_output"][0].decode() for result in results]


async def test_a_text_comes_whole_or_in_pieces() -> None:
    [whole] = await generate(Script(PLAIN))
    assert whole["text_output"].tolist() == [b"abc"]
    assert whole["num_output_tokens"].tolist() == [3]
    assert texts(await generate(Script(PLAIN), stream=True)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", 0.5),
        ("stop", "x"),
        ("logprobs", True),
        ("return_token_ids", True),
        ("priority", 1),
        ("lora", "mine"),
        ("regex", "a"),
        ("json_schema", "{}"),
        ("ignore_eos", True),
        ("resume_token_ids", "[1]"),
    ],
)
async def test_what_an_engine_does_not_obey_is_refused_by_name(name: str, value: Any) -> None:
    engine = Script(PLAIN)
    assert f"{name}: script" in await refused(engine, Unimplemented, **{name: value})
    assert not engine.asked


async def test_a_chat_and_its_tools_are_refused_where_there_is_no_template_for_them() -> None:
    chat = json.dumps([{"role": "user", "content": "Hi"}])
    tools = json.dumps([{"type": "function", "function": {"name": "clock"}}])
    said = await refused(Script(PLAIN), Unimplemented, {"messages": chat})
    assert said == "messages: script has no chat template"
    mute = Script(attrs.evolve(ABLE, tools=False))
    said = await refused(mute, Unimplemented, {"messages": chat, "tools": tools})
    assert said.startswith("tools: the chat template")
    engine = Script(ABLE)
    async with serving(engine) as client:
        await client.infer("decode", {"messages": chat, "tools": tools})
    [(prompt, _, _)] = engine.asked
    assert isinstance(prompt, Chat)
    assert prompt.tools[0]["function"]["name"] == "clock"


async def test_tools_belong_to_a_chat() -> None:
    said = await refused(Script(ABLE), InvalidArgument, tools="[]")
    assert said == "tools: only together with messages"


async def test_what_is_only_told_where_it_is_asked_for_is_told_of_the_whole_text() -> None:
    [result] = await generate(
        Script(ABLE),
        return_token_ids=True,
        return_num_cached_tokens=True,
        logprobs=True,
        top_logprobs=1,
    )
    assert result["token_ids"].tolist() == [1, 2, 3]
    assert result["num_cached_tokens"].tolist() == [3]
    told = json.loads(result["logprobs"][0])
    assert told[0] == {
        "token": "a",
        "bytes": [97],
        "logprob": -0.5,
        "id": 1,
        "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5, "id": 1}],
    }
    assert len(told) == 3
    [result] = await generate(Script(ABLE))
    assert not {"token_ids", "num_cached_tokens", "logprobs", "index"} & set(result.outputs)


@pytest.mark.parametrize("ids", [np.array([4, 5], np.int32), "[4, 5]"], ids=["input", "parameter"])
async def test_a_text_is_resumed_from_its_ids(ids: Any) -> None:
    engine = Script(ABLE)
    async with serving(engine) as client:
        if isinstance(ids, str):
            await client.infer("decode", {"text_input": "p"}, {"resume_token_ids": ids})
        else:
            await client.infer("decode", {"text_input": "p", "resume_token_ids": ids})
    assert [resume for _, _, resume in engine.asked] == [(4, 5)]


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"resume_token_ids": "{"}, "not JSON"),
        ({"resume_token_ids": "[-1]"}, "a list of token ids"),
        ({"resume_token_ids": "[true]"}, "a list of token ids"),
        ({"resume_token_ids": "[1]", "n": 2}, "one text"),
        ({"resume_token_ids": "[1]", "regex": "a"}, "not together"),
    ],
    ids=lambda value: str(value),
)
async def test_ids_that_cant_be_resumed_from_are_refused(
    parameters: dict[str, Any], message: str
) -> None:
    said = await refused(Script(ABLE), InvalidArgument, **parameters)
    assert said.startswith(f"resume_token_ids: {message}")


async def test_several_texts_are_asked_for_one_by_one_each_with_a_seed_of_its_own() -> None:
    engine = Script(ABLE)
    results = await generate(engine, n=3, seed=2**64 - 2)
    assert texts(results) == ["abc"] * 3
    assert sorted(result["index"].item() for result in results) == [0, 1, 2]
    assert sorted(sampling.seed or 0 for _, sampling, _ in engine.asked) == [
        0,
        2**64 - 2,
        2**64 - 1,
    ]
    assert {sampling.n for _, sampling, _ in engine.asked} == {1}


async def test_an_engine_that_gives_several_texts_itself_is_asked_once() -> None:
    engine = Script(attrs.evolve(ABLE, samples=True))
    results = await generate(engine, n=2, stream=True)
    assert texts(results) == ["a", "b", "c"] * 2
    assert [sampling.n for _, sampling, _ in engine.asked] == [2]


async def test_the_first_of_several_texts_that_fails_ends_all() -> None:
    assert await refused(Script(ABLE, fails=True), Internal, n=3) == "broken"


async def test_leaving_a_stream_gives_up_every_text() -> None:
    engine = Script(ABLE, endless=True)
    async with serving(engine) as client:
        responses = client.generate("decode", {"text_input": "p"}, {"n": 8, "stream": True})
        async with aclosing(responses):
            await anext(responses)
            assert engine.running == 8
        await trio.testing.wait_all_tasks_blocked()
        assert engine.running == 0


async def test_what_an_engine_says_of_itself_becomes_the_offer() -> None:
    @asynccontextmanager
    async def open_engine() -> AsyncIterator[Engine]:
        yield Script(ABLE)

    app = text_app(open_engine, "decode.fast")
    [before] = app.offers
    assert not before.resumable
    async with app.running():
        [offer] = app.offers
    assert offer.capability.attributes == {
        "model": "script",
        "max_context": 64,
        "tools": True,
        "fast": True,
    }
    assert (offer.concurrency, offer.resumable, offer.decoupled) == (5, True, True)
    assert Offer.from_json(json.loads(json.dumps(offer.to_json()))) == offer


async def test_an_engine_embeds_texts() -> None:
    @asynccontextmanager
    async def open_engine() -> AsyncIterator[Engine]:
        yield Script(PLAIN)

    app = embedding_app(open_engine, dimensions=2)
    async with open_test_client(app) as client:
        result = await client.infer("embedding", {"text_input": ["a", "bcd"]})
        assert result["embedding"].tolist() == [[1, 1], [3, 1]]
        with pytest.raises(InvalidArgument, match=r"text_input\[1\]: not UTF-8"):
            await client.infer("embedding", {"text_input": [b"a", b"\xff"]})


async def test_what_an_engine_leaves_out_it_cant_do() -> None:
    @attrs.define(eq=False)
    class Nothing(Engine):
        about: About

    nothing = Nothing(PLAIN)
    with pytest.raises(Unimplemented, match="script generates no text"):
        nothing.generate("p", Sampling())
    with pytest.raises(Unimplemented, match="script embeds no text"):
        await nothing.embed(["p"])
    await nothing.health()
    assert nothing.others() == 0


@attrs.define(eq=False)
class Patient(Script):
    """An engine whose server may be down, or busy for others."""

    down: str = ""
    asked_by_others: int = 0

    def others(self) -> int:
        return self.asked_by_others

    async def health(self) -> None:
        if self.down:
            raise Unavailable(self.down)


async def test_an_engine_that_is_down_is_refused_until_it_is_up_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine = Patient(PLAIN)
    async with serving(engine) as client:
        engine.down = "its server has gone"
        await trio.sleep(WATCH_INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable, match="its server has gone") as caught:
            await client.infer("decode", {"text_input": "p"})
        assert caught.value.elsewhere
        assert not engine.asked
        engine.down = ""
        await trio.sleep(WATCH_INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        await client.infer("decode", {"text_input": "p"})


async def test_what_others_have_its_server_do_counts_as_load_and_refuses_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    engine = Patient(PLAIN)
    async with serving(engine) as client:
        [pool] = client._dispatcher.pools
        slots = PLAIN.slots
        for others, running, queued in ((3, 3, 0), (slots + 2, slots, 2), (0, 0, 0)):
            engine.asked_by_others = others
            await trio.sleep(WATCH_INTERVAL)
            await trio.testing.wait_all_tasks_blocked()
            load = standing([pool], False, trio.current_time()).loads["decode"]
            assert (load.running, load.queued, load.slots) == (running, queued, slots)
            await client.infer("decode", {"text_input": "p"})
