"""Texts of a scripted SGLang: what is asked of it, and what its stream becomes."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.interface import Delta
from anyserve.engines.prompts import Chat, Message
from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang.app import attached
from anyserve.engines.sglang.deltas import ChunkReader
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.protocol import Chunk, ChunkWithIds, Finish, Meta
from anyserve.engines.sglang.tokenizer import Tokenizer
from anyserve.errors import InvalidArgument, Unavailable, Unimplemented
from anyserve.testing import open_test_client

Attach = Callable[..., AbstractAsyncContextManager[SglangEngine]]

# "😀" in two tokens, "é" in two, and whole ones.
TOKENS = {1: b"a", 2: " 😀".encode()[:3], 3: "😀".encode()[2:], 4: b"\xc3", 5: b"\xa9", 6: b"b "}
PARTS = {number: data for number, data in TOKENS.items() if number in (2, 3, 4, 5)}


async def texts(engine: SglangEngine, **sampling: Any) -> list[Delta]:
    prompt, resume = sampling.pop("prompt", "Say"), sampling.pop("resume", ())
    return [d async for d in engine.generate(prompt, Sampling(**sampling), resume=resume)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tokenizer files of a model that spells bytes in letters."""
    vocab = {"a": 1, "Ġ": 2, "Ã": 4, "©": 5}
    file = {"model": {"type": "BPE", "vocab": vocab}, "decoder": {"type": "ByteLevel"}}
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


async def test_cumulative_text_becomes_deltas(engine: SglangEngine) -> None:
    deltas = await texts(engine)
    assert [d.text for d in deltas] == ["Hel", "lo", "!"]
    assert [d.finish_reason for d in deltas] == [None, None, "stop"]
    assert [d.usage.output_tokens for d in deltas] == [1, 2, 3]
    assert deltas[-1].usage.prompt_tokens == 3
    assert deltas[-1].usage.cached_tokens == 1


async def test_a_server_that_streams_what_is_new_is_read_as_well(
    server: Any, attach: Attach
) -> None:
    server.options["incremental_streaming_output"] = True
    server.generate = lambda asked: asked.events(
        server.piece("Hel", [1]), server.piece("lo", [2, 9], {"type": "stop", "matched": 9})
    )
    async with attach() as engine:
        assert [d.text for d in await texts(engine)] == ["Hel", "lo"]


async def test_one_connection_serves_one_text_after_another(
    server: Any, engine: SglangEngine
) -> None:
    for _ in range(5):
        await texts(engine)
    assert server.connections <= 2  # one, and the probe's


async def test_the_offer_says_what_the_server_said(server: Any, attach: Attach) -> None:
    server.model = {"model_path": "/models/tiny-7b", "served_model_name": "/models/tiny-7b"}
    server.options["enable_priority_scheduling"] = True
    async with attach() as engine:
        about = engine.about
    assert (about.model, about.max_context, about.slots) == ("tiny-7b", 64, 4)
    assert "priority" in about.sampling
    assert not {"seed", "lora"} & about.sampling
    assert not about.chat
    assert not about.resumable  # without its tokenizer nobody knows where characters end


async def test_sampling_reaches_the_server(server: Any, attach: Attach) -> None:
    server.options |= {
        "enable_priority_scheduling": True,
        "schedule_low_priority_values_first": True,
        "enable_lora": True,
        "enable_deterministic_inference": True,
    }
    async with attach() as engine:
        await texts(
            engine,
            max_tokens=5,
            temperature=0.5,
            top_p=0.9,
            top_k=4,
            min_p=0.1,
            stop=("!",),
            seed=2**63 + 7,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.1,
            ignore_eos=True,
            regex="a+",
            priority=3,
            lora="mine",
            logprobs=True,
            top_logprobs=2,
        )
    [body] = server.bodies("/generate")
    assert len(body.pop("rid")) > 32
    assert body == {
        "text": "Say",
        "stream": True,
        "priority": -3,
        "lora_path": "mine",
        "return_logprob": True,
        "logprob_start_len": -1,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
        "sampling_params": {
            "max_new_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "min_p": 0.1,
            "stop": ["!"],
            "no_stop_trim": True,
            "sampling_seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "regex": "a+",
        },
    }


async def test_a_stop_string_is_held_back_until_it_is_known(
    server: Any, engine: SglangEngine
) -> None:
    server.generate = lambda asked: asked.events(
        server.piece("a S", [1]),
        server.piece("a ST", [1, 2]),
        server.piece("a STOP", [1, 2, 3], {"type": "stop", "matched": "STOP"}),
    )
    deltas = await texts(engine, stop=("STOP",))
    assert "".join(d.text for d in deltas) == "a "
    assert deltas[-1].finish_reason == "stop"


async def test_max_tokens_is_what_the_context_leaves(server: Any, engine: SglangEngine) -> None:
    await texts(engine, prompt="abc", max_tokens=2**31 - 1)
    assert server.bodies("/generate")[-1]["sampling_params"]["max_new_tokens"] is None
    assert not server.bodies("/v1/tokenize")
    await texts(engine, prompt="abc", max_tokens=63)
    body = server.bodies("/generate")[-1]
    assert body["input_ids"] == [1, 10, 11, 12]
    assert body["sampling_params"]["max_new_tokens"] == 64 - 4 - 1


async def test_a_prompt_that_is_too_long_is_refused(engine: SglangEngine) -> None:
    with pytest.raises(InvalidArgument, match="65 tokens, but the context holds 64"):
        await texts(engine, prompt="x" * 64, max_tokens=1)
    with pytest.raises(InvalidArgument, match="characters"):
        await texts(engine, prompt="x" * 5000)
    with pytest.raises(InvalidArgument, match="is no text"):
        await texts(engine, prompt="\ud800")
    with pytest.raises(InvalidArgument, match="empty"):
        await texts(engine, prompt="")


async def test_a_text_goes_on_from_the_ids_that_were_given(
    server: Any, attach: Attach, folder: Path
) -> None:
    server.generate = lambda asked: asked.events(
        server.piece("lo", [2, 9], {"type": "stop", "matched": 9}, prompt_tokens=6)
    )
    async with attach(folder) as engine:
        assert engine.about.resumable
        [delta] = await texts(engine, resume=[7, 8], max_tokens=5, return_token_ids=True)
        [full] = await texts(engine, resume=[7, 8], max_tokens=2, return_token_ids=True)
    body = server.bodies("/generate")[0]
    assert body["input_ids"] == [1, 10, 11, 12, 7, 8]
    assert body["sampling_params"]["max_new_tokens"] == 3
    assert (delta.text, delta.token_ids) == ("lo", (2,))  # without the model's own end
    assert delta.usage.prompt_tokens == 4
    assert delta.usage.output_tokens == 4
    assert (full.text, full.finish_reason, full.usage.output_tokens) == ("", "length", 2)
    assert len(server.bodies("/generate")) == 1


async def test_chats_go_through_the_models_template(
    server: Any, attach: Attach, folder: Path
) -> None:
    async with attach(folder) as engine:
        assert engine.about.chat
        await texts(engine, prompt=Chat((Message("user", "hi"),)), max_tokens=4)
    # The server puts <s> before raw prompts itself.
    assert server.bodies("/generate")[0]["text"] == "user:hi;"


async def test_without_a_template_chats_are_refused(engine: SglangEngine) -> None:
    with pytest.raises(Unimplemented, match="no chat template"):
        await texts(engine, prompt=Chat((Message("user", "hi"),)))


async def test_logprobs_have_the_bytes_of_parts_of_characters(
    server: Any, attach: Attach, folder: Path
) -> None:
    told = [[-0.5, 4, "�"], [-0.25, 5, "�"], [None, 9, ""]]
    top = [[[-0.5, 4, "�"], [-1.5, 1, "a"]], None, None]
    end = {"type": "stop", "matched": 9}
    server.generate = lambda asked: asked.events(
        server.piece("", [4], output_token_logprobs=told[:1], output_top_logprobs=top[:1]),
        server.piece("é", [4, 5], output_token_logprobs=told[:2], output_top_logprobs=top[:2]),
        server.piece("é", [4, 5, 9], end, output_token_logprobs=told, output_top_logprobs=top),
    )
    async with attach(folder) as engine:
        first, last = await texts(engine, logprobs=True, top_logprobs=2, return_token_ids=True)
    assert [(t.token, t.logprob) for t in first.logprobs] == [(b"\xc3", -0.5), (b"\xa9", -0.25)]
    assert [t.token for t in first.logprobs[0].top] == [b"\xc3", b"a"]
    assert first.token_ids == (4, 5)
    assert (last.text, last.token_ids, last.logprobs) == ("", (), ())


@given(
    st.lists(st.sampled_from([(1,), (2, 3), (4, 5), (6,)]), min_size=1, max_size=12),
    st.booleans(),
    st.data(),
)
def test_ids_are_those_whose_text_is_complete(
    words: list[tuple[int, ...]], incremental: bool, data: st.DataObject
) -> None:
    ids = [number for word in words for number in word]
    reader = ChunkReader(incremental, Tokenizer(PARTS, "", None))
    at, sent, given_ids, text = 0, "", [], ""
    while at < len(ids):
        start, at = at, data.draw(st.integers(at + 1, len(ids)))
        # SGLang gives the beginning of a text whose last character is not whole.
        whole = codecs.getincrementaldecoder("utf-8")().decode(
            b"".join(TOKENS[number] for number in ids[:at])
        )
        end = Finish("length") if at == len(ids) else None
        meta = Meta(prompt_tokens=1, completion_tokens=at, finish_reason=end)
        new = (whole[len(sent) :], ids[start:at]) if incremental else (whole, ids[:at])
        sent = whole
        delta = reader.read(ChunkWithIds(new[0], meta, output_ids=new[1]))
        if delta is not None:
            text += delta.text
            given_ids += delta.token_ids
            assert b"".join(TOKENS[number] for number in given_ids).decode() == text
    assert given_ids == ids


def test_a_piece_without_sense_is_no_text() -> None:
    with pytest.raises(Unavailable):
        ChunkReader(False).read(Chunk("x"))


async def test_a_model_that_embeds_gives_vectors(server: Any) -> None:
    server.model["is_generation"] = False
    # It blocks until the server answers, which is in this loop.
    app = await trio.to_thread.run_sync(attached, server.url)
    async with open_test_client(app) as client:
        result = await client.infer("embedding", {"text_input": np.array([b"ab", b"c"], object)})
    assert result["embedding"].tolist() == [[2, 1], [1, 1]]
    assert not server.bodies("/generate")


async def test_the_key_is_shown_at_every_door(server: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    app = await trio.to_thread.run_sync(
        lambda: attached(server.url, "decode.heavy", api_key_file=str(tmp_path / "key"))
    )
    async with open_test_client(app) as client:
        await client.infer("decode.heavy", {"text_input": "Say"})
    assert {asked.headers.get("authorization") for asked in server.asked} == {"bearer secret"}
