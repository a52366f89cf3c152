"""The text engine on the real model: its answers, its slots, and giving texts up."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
import trio
import trio.testing

from anyserve.engines.interface import Delta
from anyserve.engines.prompts import Chat, Message, Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.text import TextEngine, TextSettings
from anyserve.engines.text import engine as text_engine
from anyserve.engines.text.native import NativeServer
from anyserve.errors import Internal, InvalidArgument, Unavailable

PARIS = "The capital of France is"
LONG = "one two three four five six " * 300
"""About 1,800 tokens: ten seconds of prefill on one core."""
PROMPTLY = 3.0
"""Seconds: over anything that a busy machine makes of 0.5, and far under what LONG would take."""


async def deltas(engine: TextEngine, prompt: Prompt, **sampling: object) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, Sampling.of(sampling))]


async def text(engine: TextEngine, prompt: Prompt, **sampling: object) -> str:
    return "".join(delta.text for delta in await deltas(engine, prompt, **sampling))


def ask(question: str) -> Chat:
    return Chat((Message("user", question),))


async def test_a_chat_answers_a_question(engine: TextEngine) -> None:
    answer = await text(engine, ask("What is the capital of France?"), max_tokens=24)
    assert "Paris" in answer


async def test_a_raw_prompt_is_continued(engine: TextEngine) -> None:
    assert (await text(engine, PARIS, max_tokens=3)).startswith(" Paris")


async def test_pieces_come_one_by_one_with_counts_and_the_last_has_the_reason(
    engine: TextEngine,
) -> None:
    pieces = await deltas(engine, PARIS, max_tokens=8)
    assert len(pieces) > 4
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].usage.prompt_tokens == 5
    counts = [piece.usage.output_tokens for piece in pieces]
    assert counts == sorted(counts)
    assert counts[-1] == 8


async def test_a_stop_string_ends_the_text_before_it(engine: TextEngine) -> None:
    pieces = await deltas(engine, "Count: 1, 2, 3,", max_tokens=40, stop=["7"])
    whole = "".join(piece.text for piece in pieces)
    assert "6" in whole
    assert "7" not in whole
    assert pieces[-1].finish_reason == "stop"


async def test_a_seed_makes_a_random_text_the_same_again(engine: TextEngine) -> None:
    async def story(seed: int) -> str:
        return await text(engine, "Once upon", temperature=1.5, max_tokens=16, seed=seed)

    assert await story(2**64 - 1) == await story(2**64 - 1)
    assert len({await story(seed) for seed in range(3)}) == 3


async def test_temperature_0_gives_the_same_text_again(engine: TextEngine) -> None:
    first = await text(engine, "The largest planet", max_tokens=16)
    assert await text(engine, "The largest planet", max_tokens=16) == first


async def test_characters_of_several_tokens_are_never_cut(engine: TextEngine) -> None:
    pieces = await deltas(engine, "Emojis: 😀😃😄😁😆😅", max_tokens=16)
    whole = "".join(piece.text for piece in pieces)
    assert "\N{REPLACEMENT CHARACTER}" not in whole
    assert any(ord(character) > 0xFFFF for character in whole)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("prompt", ["Bob: ", ask("Describe a person.")], ids=["prompt", "chat"])
async def test_a_text_keeps_to_its_json_schema(engine: TextEngine, prompt: Prompt) -> None:
    whole = await text(engine, prompt, max_tokens=80, json_schema=SCHEMA)
    assert json.loads(whole).keys() == {"name", "age"}


@pytest.mark.parametrize("prompt", ["Bob: ", ask("A number?")], ids=["prompt", "chat"])
@pytest.mark.parametrize(
    "schema", [{"type": "integer", "minimum": 5, "maximum": 3}, {"$ref": "#/nowhere"}]
)
async def test_a_schema_that_cant_be_held_is_an_error_and_kills_nothing(
    engine: TextEngine, prompt: Prompt, schema: object
) -> None:
    with pytest.raises(InvalidArgument, match="can't hold"):
        await text(engine, prompt, max_tokens=60, json_schema=schema)
    assert "Paris" in await text(engine, PARIS, max_tokens=3)


async def test_a_system_message_takes_the_place_of_the_default_one(engine: TextEngine) -> None:
    bare = (await deltas(engine, ask("Hi"), max_tokens=1))[-1].usage.prompt_tokens
    own = Chat((Message("system", "Ok."), Message("user", "Hi")))
    assert (await deltas(engine, own, max_tokens=1))[-1].usage.prompt_tokens < bare


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "empty"),
        (Chat(()), "empty"),
        ("one " * 2500, "2501 tokens, but the context holds 2048"),
        (ask("one " * 2500), r"25\d\d tokens, but the context holds 2048"),
        ("x" * 200_000, "200000 characters"),
        (ask("\ud800"), "surrogates"),
    ],
    ids=["empty", "no messages", "long", "long chat", "very long", "surrogate"],
)
async def test_a_prompt_that_cant_be_taken_is_refused(
    engine: TextEngine, prompt: Prompt, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        await text(engine, prompt)


async def test_a_text_ends_with_the_context() -> None:
    async with TextEngine.open(TextSettings(slots=1, context=256)) as engine:
        last = (await deltas(engine, "1, 2, 3, 4, " * 16, max_tokens=2**31 - 1))[-1]
    assert last.finish_reason == "length"
    assert last.usage.prompt_tokens + last.usage.output_tokens == pytest.approx(256, abs=2)


async def test_more_texts_than_slots_are_all_served(engine: TextEngine) -> None:
    answers: dict[int, str] = {}

    async def answer(number: int) -> None:
        answers[number] = await text(engine, f"{PARIS}", max_tokens=2 + number % 3)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(answer, number)
        await trio.testing.wait_all_tasks_blocked()
        assert engine._slots.borrowed_tokens <= 8
    assert all("Paris" in answers[number] for number in range(12))
    assert engine._slots.borrowed_tokens == 0


async def until_begun(engine: TextEngine) -> None:
    """Let every task go as far as it can: one text has its slot then."""
    await trio.testing.wait_all_tasks_blocked()
    assert engine._slots.borrowed_tokens


async def read_all(engine: TextEngine, prompt: Prompt, max_tokens: int = 500) -> None:
    await deltas(engine, prompt, max_tokens=max_tokens)


async def cancelled_at_once(engine: TextEngine, prompt: Prompt) -> None:
    """Cancelled when it has its slot, before the first token."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, engine, prompt)
        await until_begun(engine)
        nursery.cancel_scope.cancel()


async def cancelled_in_prefill(engine: TextEngine, prompt: Prompt) -> None:
    """Cancelled by a deadline while the prompt is being computed."""
    with trio.move_on_after(0.6) as scope:
        await read_all(engine, prompt)
    assert scope.cancelled_caught


async def cancelled_in_the_middle(engine: TextEngine, prompt: Prompt) -> None:
    """Cancelled between two pieces, by the reader's own scope."""
    with trio.CancelScope() as scope:
        async for _ in engine.generate(PARIS, Sampling(max_tokens=1000)):
            scope.cancel()
    assert scope.cancelled_caught


async def closed_in_the_middle(engine: TextEngine, prompt: Prompt) -> None:
    """Not read to the end."""
    async with aclosing(engine.generate(PARIS, Sampling(max_tokens=1000))) as pieces:
        await anext(pieces)


@pytest.mark.parametrize(
    "give_up",
    [cancelled_at_once, cancelled_in_prefill, cancelled_in_the_middle, closed_in_the_middle],
)
async def test_a_text_given_up_frees_its_slot(
    native: NativeServer, give_up: Callable[[TextEngine, Prompt], Awaitable[None]]
) -> None:
    # Every slot is given up, so that what comes next needs one of them.
    async with TextEngine.serving(native, TextSettings()) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(engine.settings.slots):
                nursery.start_soon(give_up, engine, f"{number} {LONG}")
        with trio.fail_after(PROMPTLY):
            assert "Paris" in await text(engine, PARIS, max_tokens=3)
        assert engine._slots.borrowed_tokens == 0


async def test_a_text_waiting_for_its_turn_is_given_up_without_a_slot(engine: TextEngine) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, engine, LONG)
        await until_begun(engine)
        with trio.move_on_after(0.1) as scope:
            await read_all(engine, PARIS)
        assert scope.cancelled_caught
        assert engine._slots.borrowed_tokens == 1
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_holds_its_text_up_and_nobody_elses(engine: TextEngine) -> None:
    slow = engine.generate("Once upon a time", Sampling(max_tokens=text_engine.AHEAD * 2))
    async with aclosing(slow):
        first = await anext(slow)
        for _ in range(8):
            assert "Paris" in await text(engine, PARIS, max_tokens=3)
        assert engine._slots.borrowed_tokens == 1  # its thread waits for the reader
        rest = [delta async for delta in slow]
    assert rest[-1].usage.output_tokens == text_engine.AHEAD * 2
    assert first.usage.output_tokens == 1


async def test_an_exception_in_the_native_callback_is_not_lost(
    engine: TextEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(chunk: object) -> None:
        raise RuntimeError("broken reader")

    with monkeypatch.context() as patch:
        patch.setattr(text_engine, "prompt_left", broken)
        with pytest.raises(Internal, match="RuntimeError: broken reader"):
            await text(engine, PARIS)
    assert "Paris" in await text(engine, PARIS, max_tokens=3)


async def test_closing_the_engine_ends_texts_with_unavailable(native: NativeServer) -> None:
    async def expect_unavailable(engine: TextEngine) -> None:
        with pytest.raises(Unavailable, match="closing"):
            await read_all(engine, LONG)

    async with trio.open_nursery() as nursery:
        async with TextEngine.serving(native, TextSettings()) as engine:
            nursery.start_soon(expect_unavailable, engine)
            await until_begun(engine)
        with pytest.raises(Unavailable, match="closing"):
            await text(engine, PARIS)


async def test_closing_the_engine_ends_a_text_that_waits_for_its_reader(
    native: NativeServer,
) -> None:
    async with TextEngine.serving(native, TextSettings()) as engine:
        slow = engine.generate("Once upon a time", Sampling(max_tokens=1000))
        await anext(slow)
        await text(engine, PARIS, max_tokens=text_engine.AHEAD * 2)  # it is far ahead by then
        assert engine._slots.borrowed_tokens == 1
    with pytest.raises(Unavailable, match="closing"):
        _ = [delta async for delta in slow]


async def test_a_storm_of_texts_that_are_all_given_up_frees_every_slot_within_a_second(
    native: NativeServer,
) -> None:
    async with TextEngine.serving(native, TextSettings()) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(read_all, engine, f"{number} {LONG if number % 2 else PARIS}")
            await until_begun(engine)
            await trio.sleep(0.3)  # some compute, the others wait for their turn
            assert len(engine._nursery.child_tasks) == 200
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            while engine._nursery.child_tasks:  # noqa: ASYNC110 - threads that compute a batch
                await trio.sleep(0.01)
        assert engine._slots.borrowed_tokens == 0
        with trio.fail_after(PROMPTLY):
            assert "Paris" in await text(engine, PARIS, max_tokens=3)
