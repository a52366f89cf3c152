"""A text that is broken off anywhere and resumed from its token ids is the text it would have
been."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from anyserve.engines.interface import Delta
from anyserve.engines.prompts import Chat, Message, Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.text import TextEngine
from anyserve.errors import InvalidArgument

PARIS = "The capital of France is"
EMOJIS = "Emojis: 😀😃😄😁😆😅"


async def told(
    engine: TextEngine, prompt: Prompt, resume: Sequence[int] = (), **sampling: object
) -> list[Delta]:
    asked = Sampling.of({"return_token_ids": True, **sampling})
    return [delta async for delta in engine.generate(prompt, asked, resume=resume)]


def text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids(deltas: Sequence[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@pytest.mark.parametrize(
    "prompt, sampling",
    [
        (PARIS, {"max_tokens": 24}),
        (EMOJIS, {"max_tokens": 20}),
        ("Count: 1, 2, 3,", {"max_tokens": 24, "stop": ["5, 6, 8"]}),
        ("Count: 1, 2, 3,", {"max_tokens": 40, "stop": ["8, 9, 10"]}),
        (PARIS, {"max_tokens": 24, "frequency_penalty": 1.0, "repetition_penalty": 1.2}),
        (Chat((Message("user", "What is the capital of France?"),)), {"max_tokens": 40}),
    ],
    ids=["plain", "characters of several tokens", "held back", "stopped", "penalties", "chat"],
)
async def test_a_text_goes_on_after_any_of_its_pieces_as_if_it_had_not_been_broken_off(
    engine: TextEngine, prompt: Prompt, sampling: dict[str, object]
) -> None:
    whole = await told(engine, prompt, **sampling)
    for cut in range(1, len(whole), 3):
        given = whole[:cut]
        rest = await told(engine, prompt, ids(given), **sampling)
        assert text(given) + text(rest) == text(whole)
        assert ids(given) + ids(rest) == ids(whole)
        assert rest[-1].finish_reason == whole[-1].finish_reason
        assert rest[-1].usage.output_tokens == whole[-1].usage.output_tokens
        assert rest[-1].usage.prompt_tokens == whole[-1].usage.prompt_tokens


async def test_ids_are_those_of_the_text(engine: TextEngine) -> None:
    for prompt in (PARIS, EMOJIS):
        whole = await told(engine, prompt, max_tokens=12)
        known = engine._native.model.vocabulary
        for delta in whole:
            assert b"".join(known.texts[token] for token in delta.token_ids) == delta.text.encode()
        assert len(ids(whole)) == whole[-1].usage.output_tokens == 12


async def test_the_models_own_end_has_no_id(engine: TextEngine) -> None:
    whole = await told(engine, Chat((Message("user", "Say only: yes"),)), max_tokens=60)
    assert whole[-1].finish_reason == "stop"
    assert whole[-1].usage.output_tokens == len(ids(whole)) + 1


async def test_ids_come_only_where_they_are_asked_for(engine: TextEngine) -> None:
    whole = await told(engine, PARIS, max_tokens=4, return_token_ids=False)
    assert ids(whole) == []


async def test_a_text_that_had_all_its_tokens_only_ends(engine: TextEngine) -> None:
    whole = await told(engine, PARIS, max_tokens=6)
    rest = await told(engine, PARIS, ids(whole), max_tokens=6)
    assert [(delta.text, delta.finish_reason) for delta in rest] == [("", "length")]
    assert rest[-1].usage.output_tokens == 6
    assert rest[-1].usage.prompt_tokens == 5


async def test_an_id_that_no_token_has_is_refused(engine: TextEngine) -> None:
    with pytest.raises(InvalidArgument, match="invalid tokens"):
        await told(engine, PARIS, [10**6])


async def test_logprobs_are_told_of_every_token_and_of_the_likeliest(engine: TextEngine) -> None:
    likely = await told(engine, PARIS, max_tokens=4, logprobs=True, top_logprobs=20)
    assert [len(delta.logprobs) for delta in likely] == [1, 1, 1, 1, 0]
    for delta in likely[:-1]:
        [token] = delta.logprobs
        assert token.token == delta.text.encode()
        assert (token.token_id,) == delta.token_ids
        assert len(token.top) == 20
        assert token.top[0].token_id == token.token_id  # the temperature is 0
        assert token.top[0].logprob == token.logprob <= 0
        assert [other.logprob for other in token.top] == sorted(
            (other.logprob for other in token.top), reverse=True
        )


async def test_text_that_ends_with_half_a_stop_string_is_not_lost(engine: TextEngine) -> None:
    plain = await told(engine, "Count: 1, 2, 3,", max_tokens=8)
    held = await told(engine, "Count: 1, 2, 3,", max_tokens=8, stop=["5, 6, 8"])
    assert text(held) == text(plain)
    assert text(plain).endswith("5, 6")
    assert held[-1].finish_reason == "length"


async def test_ignoring_the_models_own_end_makes_the_text_go_on(engine: TextEngine) -> None:
    chat = Chat((Message("user", "Say only: yes"),))
    assert (await told(engine, chat, max_tokens=60))[-1].finish_reason == "stop"
    whole = await told(engine, chat, max_tokens=60, ignore_eos=True)
    assert whole[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "What is the capital of France?")],
        [("system", "Be terse."), ("user", "héllo 😀"), ("assistant", "Hi."), ("user", "\n a ")],
        [("system", ""), ("user", "<|im_end|> {{ 7 * 7 }}")],
    ],
    ids=["default system message", "many turns", "what looks like markup"],
)
async def test_a_chat_is_the_prompt_that_llama_cpp_makes_of_it_and_has_its_answer(
    engine: TextEngine, messages: list[tuple[str, str]]
) -> None:
    theirs = [{"role": role, "content": content} for role, content in messages]
    if messages[0][0] != "system":
        theirs.insert(0, {"role": "system", "content": engine.settings.system_prompt})
    body = {"messages": theirs, "max_tokens": 24, "temperature": 0, "top_p": 1, "top_k": 0}
    body |= {"min_p": 0, "reasoning_format": "none"}
    answers: list[bytes] = []
    engine._native._server.handle_chat_completions(json.dumps(body).encode(), answers.append)
    answer = json.loads(answers[-1])
    chat = Chat(tuple(Message(role, content) for role, content in messages))
    ours = await told(engine, chat, max_tokens=24)
    assert text(ours) == answer["choices"][0]["message"]["content"]
    assert ours[-1].usage.prompt_tokens == answer["usage"]["prompt_tokens"]
