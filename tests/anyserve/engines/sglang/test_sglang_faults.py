"""A scripted SGLang that is down, slow, mad or gone: typed errors, and it recovers by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang import events, health
from anyserve.engines.sglang.app import attached
from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.pool import EnginePool
from anyserve.errors import (
    AnyServeError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from anyserve.testing import open_test_client

LOADS = "/v1/loads?include=core"
Attach = Callable[..., AbstractAsyncContextManager[SglangEngine]]


async def text(engine: Any, **sampling: Any) -> str:
    return "".join([d.text async for d in engine.generate("Say", Sampling(**sampling))])


async def _status(status: int, asked: Any) -> None:
    await asked.answer({"error": {"message": "broken"}}, status)


async def _no_http(asked: Any) -> None:
    await asked.raw(b"\x00\x01 what is this\r\n\r\n")


async def _garbage(asked: Any) -> None:
    await asked.head()
    await asked.chunk(b"data: {nonsense\n\n")


async def _not_utf8(asked: Any) -> None:
    await asked.head()
    await asked.chunk(b'data: {"text": "\xff"}\n\n')


async def _nothing(asked: Any) -> None:
    await asked.events()


async def _closes_at_once(asked: Any) -> None:
    await asked.stream.aclose()


async def _closes_midway(asked: Any) -> None:
    await asked.head()
    await asked.event(ON)
    await asked.stream.aclose()


async def _truncated(asked: Any) -> None:
    await asked.head()
    await asked.raw(b"400\r\ndata: {")
    await asked.stream.aclose()


async def _endless_line(asked: Any) -> None:
    await asked.head()
    await asked.chunk(b"data: " + b"x" * 5000)


ON = {
    "text": "On",
    "output_ids": [1],
    "meta_info": {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": None},
}


@pytest.mark.parametrize(
    "misbehaves",
    [
        partial(_status, 500),
        partial(_status, 503),
        _no_http,
        _garbage,
        _not_utf8,
        _nothing,
        _closes_at_once,
        _closes_midway,
        _truncated,
        _endless_line,
    ],
)
async def test_what_a_server_does_wrong_is_unavailable_and_it_is_used_again(
    server: Any,
    engine: SglangEngine,
    misbehaves: Callable[[Any], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MAX_LINE", 4096)
    server.generate = misbehaves
    with pytest.raises(Unavailable):
        await text(engine)
    server.generate = None
    assert await text(engine) == "Hello!"


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, InvalidArgument),
        (422, InvalidArgument),
        (429, ResourceExhausted),
        (401, FailedPrecondition),
    ],
)
async def test_a_refusal_keeps_its_words(
    server: Any, engine: SglangEngine, status: int, kind: type[AnyServeError]
) -> None:
    server.generate = partial(_status, status)
    with pytest.raises(kind, match="broken"):
        await text(engine)


async def test_an_error_in_the_stream_is_the_requests(server: Any, engine: SglangEngine) -> None:
    async def refuses(asked: Any) -> None:
        await asked.events({"error": {"message": "no such adapter", "code": 400}})

    async def gives_up(asked: Any) -> None:
        reason = {"type": "abort", "message": "Failed to compile", "status_code": 400}
        await asked.events(server.piece("-", [1], reason))

    async def overloaded(asked: Any) -> None:
        await asked.events(server.piece("a", [1], "abort"))

    server.generate = refuses
    with pytest.raises(InvalidArgument, match="no such adapter"):
        await text(engine)
    server.generate = gives_up
    with pytest.raises(InvalidArgument, match="Failed to compile"):
        await text(engine)
    server.generate = overloaded
    with pytest.raises(Unavailable):
        await text(engine)
    assert not server.aborted  # there is nothing to be given up


async def test_leaving_a_text_aborts_it(server: Any, engine: SglangEngine) -> None:
    server.generate = server.gives_up
    async with aclosing(engine.generate("Say", Sampling())) as deltas:
        assert (await anext(deltas)).text == "On"
    assert server.aborted == {server.bodies("/generate")[0]["rid"]}
    # The stream has ended, so its connection serves on.
    before, server.generate = server.connections, None
    await text(engine)
    assert server.connections == before


async def test_a_cancel_before_the_first_token_aborts_it(server: Any, engine: SglangEngine) -> None:
    async def silent(asked: Any) -> None:
        await server.until_aborted(asked.body["rid"])
        await asked.events(server.piece("", [], "abort"))

    server.generate = silent
    async with trio.open_nursery() as nursery:
        nursery.start_soon(text, engine)
        await server.until_asked("/generate")
        nursery.cancel_scope.cancel()
    assert server.aborted == {server.bodies("/generate")[0]["rid"]}


async def _leave(engine: SglangEngine) -> None:
    async with aclosing(engine.generate("Say", Sampling())) as deltas:
        await anext(deltas)


async def _let_time_pass(clock: trio.testing.MockClock, over: Callable[[], bool]) -> None:
    """Whenever nobody has anything to do but wait."""
    while not over():
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(0.1)


async def test_an_abort_that_came_too_early_is_sent_again(
    server: Any, engine: SglangEngine, mock_clock: trio.testing.MockClock
) -> None:
    async def deaf_once(asked: Any) -> None:
        if len(server.bodies("/abort_request")) > 1:
            server.abort_now(asked.body["rid"])
        await asked.answer()

    server.abort, server.generate = deaf_once, server.gives_up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_leave, engine)
        await _let_time_pass(mock_clock, lambda: bool(server.aborted))
    assert len(server.bodies("/abort_request")) == 2


async def test_a_server_that_does_not_abort_holds_nobody_for_long(
    server: Any, engine: SglangEngine, mock_clock: trio.testing.MockClock
) -> None:
    async def deaf(asked: Any) -> None:
        await asked.answer()

    server.abort, server.generate = deaf, server.gives_up
    before = trio.current_time()
    left = trio.Event()

    async def leave() -> None:
        await _leave(engine)
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await _let_time_pass(mock_clock, left.is_set)
    assert trio.current_time() - before < 4


async def test_every_one_of_n_texts_is_aborted(server: Any) -> None:
    server.generate = server.gives_up
    app = await trio.to_thread.run_sync(attached, server.url)
    async with open_test_client(app) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            await client.infer("decode", {"text_input": "Say"}, {"n": 3})

        nursery.start_soon(ask)
        await server.until_asked("/generate", 3)
        nursery.cancel_scope.cancel()
    assert {body["rid"] for body in server.bodies("/generate")} == server.aborted
    assert len(server.aborted) == 3


@pytest.fixture
async def probed(
    mock_clock: trio.testing.MockClock, server: Any, engine: SglangEngine
) -> Callable[[], Awaitable[None]]:
    """Has the server's health be looked at now."""

    async def probed() -> None:
        asked = len(server.bodies("/ready"))
        mock_clock.jump(health.INTERVAL + 0.1)
        await server.until_asked("/ready", asked + 1)

    return probed


async def test_a_server_that_is_down_is_refused_and_comes_back(
    server: Any,
    engine: SglangEngine,
    probed: Callable[[], Awaitable[None]],
) -> None:
    server.generate = server.gives_up
    async with aclosing(engine.generate("Say", Sampling())) as deltas:
        await anext(deltas)
        server.ready = 503
        await probed()
        await probed()
        with pytest.raises(Unavailable):  # texts on their way are lost
            await anext(deltas)
    with pytest.raises(Unavailable) as caught:
        await engine.health()
    assert caught.value.elsewhere  # nothing was begun
    with pytest.raises(Unavailable):
        await text(engine)
    server.ready, server.generate = 200, None
    await probed()
    await server.until_asked(LOADS, 2)
    await trio.testing.wait_all_tasks_blocked()
    assert await text(engine) == "Hello!"


async def test_one_missed_answer_is_no_end(
    server: Any, engine: SglangEngine, probed: Callable[[], Awaitable[None]]
) -> None:
    server.ready = 503
    await probed()
    server.ready = 200
    assert await text(engine) == "Hello!"


async def test_a_server_that_comes_back_with_another_model_is_refused(
    server: Any, engine: SglangEngine, probed: Callable[[], Awaitable[None]]
) -> None:
    server.ready = 503
    await probed()
    await probed()
    server.ready, server.model = 200, {"model_path": "other"}
    asked = len(server.bodies("/v1/models"))
    await probed()
    await server.until_asked("/v1/models", asked + 1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    with pytest.raises(Unavailable, match="come back with 'other'"):
        await text(engine)


async def test_a_text_that_falls_silent_is_lost(
    server: Any, engine: SglangEngine, mock_clock: trio.testing.MockClock
) -> None:
    server.generate = server.gives_up
    async with aclosing(engine.generate("Say", Sampling())) as deltas:
        await anext(deltas)
        mock_clock.jump(health.STALL_TIME + health.INTERVAL)
        with pytest.raises(Unavailable, match="silent"):
            await anext(deltas)


async def test_nobody_there_is_unavailable_and_may_be_served_elsewhere() -> None:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))  # a port on which nobody listens
    with sock:
        client = Client(parse_url(f"http://127.0.0.1:{sock.getsockname()[1]}"))
        with pytest.raises(Unavailable, match="Connection refused") as caught:
            await client.ping("/ready", within=5)
    assert caught.value.elsewhere


async def test_others_are_those_that_the_server_has_and_that_are_not_ours(
    server: Any, engine: SglangEngine, probed: Callable[[], Awaitable[None]]
) -> None:
    async def seen() -> int:
        times = len(server.bodies(LOADS))
        await probed()
        await server.until_asked(LOADS, times + 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        return engine.others()

    assert await seen() == 5  # 3 run and 2 wait
    server.generate = server.gives_up
    async with (
        aclosing(engine.generate("a", Sampling())) as first,
        aclosing(engine.generate("b", Sampling())) as second,
    ):
        await anext(first)
        await anext(second)
        assert await seen() == 3
    assert await seen() == 3  # its figures may be older than the end of ours
    assert await seen() == 5
    server.loads = []
    assert await seen() == 0
    server.loads = None
    assert await seen() == 0  # that is no answer


async def test_a_pool_gives_texts_to_those_that_others_leave_free(
    server: Any, attach: Attach
) -> None:
    async with EnginePool.open([attach, attach]) as pool:
        assert pool.others() == 10
        busy, free = pool.members
        free.engine.monitor.others = 1
        assert (pool.others(), pool._pick()) == (6, free)
        busy.engine.monitor.others = 0
        assert (pool.others(), pool._pick()) == (1, busy)


async def test_a_pool_gives_texts_to_those_with_least_to_do(server: Any, attach: Attach) -> None:
    server.generate = server.gives_up
    async with EnginePool.open([attach, attach]) as pool:
        assert pool.about.slots == 8
        async with (
            aclosing(pool.generate("a", Sampling())) as first,
            aclosing(pool.generate("b", Sampling())) as second,
        ):
            await anext(first)
            await anext(second)
            assert [member.running for member in pool.members] == [1, 1]
        assert [member.running for member in pool.members] == [0, 0]
        pool.members[0].engine.monitor.fail("down")
        server.generate = None
        assert await text(pool) == "Hello!"
        pool.members[1].engine.monitor.fail("down as well")
        with pytest.raises(Unavailable, match="down"):
            await pool.health()


@pytest.mark.parametrize("url", ["https://a:1", "http://a/b", "ftp://a", "http://"])
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        parse_url(url)
