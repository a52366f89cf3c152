"""OpenAI's clients at every HTTP port of a fleet with real models."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import openai
import pytest
import trio
from openai import AsyncOpenAI, OpenAI
from tritonclient.grpc import InferenceServerClient, InferInput

CHAT: Any = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = "smollm2-135m-instruct"
SENTENCE = "a cat sat on the mat"


@attrs.frozen
class Fleet:
    """A scheduler, a replica with `embedding` only, and one with `decode` only."""

    grpc: str
    """The scheduler's."""
    http: dict[str, str]


@pytest.fixture
def fleet(start_scheduler: Any, start_replica: Any, eventually: Any) -> Fleet:
    scheduler = start_scheduler(0, "--http", "0")
    to = ("--http", "0", "--scheduler", scheduler.address, "--replica-id")
    embedder = start_replica("--caps", "embedding", *to, "embedder")
    decoder = start_replica("--caps", "decode", *to, "decoder")
    with InferenceServerClient(scheduler.address) as client:
        eventually(lambda: client.is_model_ready("decode") and client.is_model_ready("embedding"))
    doors = {"scheduler": scheduler.http, "embedder": embedder.http, "decoder": decoder.http}
    return Fleet(scheduler.address, doors)


def clients(fleet: Fleet) -> Iterator[OpenAI]:
    for address in fleet.http.values():
        with OpenAI(
            base_url=f"http://{address}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            yield client


def by_triton(address: str) -> tuple[str, Any]:
    """The same chat and embedding by KServe's protocol."""

    def text(name: str, value: str) -> InferInput:
        tensor = InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
        return tensor

    with InferenceServerClient(address) as client:
        answer = client.infer(
            "decode",
            [text("messages", json.dumps(CHAT))],
            parameters={"max_tokens": 12, "temperature": 0.0},
            client_timeout=60,
        )
        vector = client.infer("embedding", [text("text_input", SENTENCE)], client_timeout=60)
        return answer.as_numpy("text_output")[0].decode(), vector.as_numpy("embedding")[0]


def test_every_port_gives_what_kserve_gives(fleet: Fleet) -> None:
    text, vector = by_triton(fleet.grpc)
    assert "Paris" in text
    for client in clients(fleet):
        chat = client.chat.completions.create(
            model=MODEL, messages=CHAT, temperature=0, max_tokens=12
        )
        assert chat.choices[0].message.content == text
        stream = client.chat.completions.create(
            model="decode",
            messages=CHAT,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices]
        assert "".join(piece for piece in pieces if piece) == text
        assert chunks[-1].usage == chat.usage
        found = client.embeddings.create(model="embedding", input=SENTENCE)
        assert np.allclose(found.data[0].embedding, vector)


# The client leaves its generators before their end, at `[DONE]`, which Trio warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_asynchronous_client_runs_on_trio(fleet: Fleet) -> None:
    texts = []

    async def ask(client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="decode", messages=CHAT, temperature=0, max_tokens=8, stream=True
        )
        texts.append(
            "".join(
                [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            )
        )

    address = fleet.http["scheduler"]
    async with (
        AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(ask, client)
    assert len(set(texts)) == 1
    assert "Paris" in texts[0]


def test_a_schema_is_kept_and_one_that_can_not_be_is_refused(fleet: Fleet) -> None:
    schema: Any = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }

    def wanted(schema: Any) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    with OpenAI(base_url=f"http://{fleet.http['decoder']}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="decode",
            messages=CHAT,
            temperature=0,
            max_tokens=40,
            response_format=wanted(schema),
        )
        content = answer.choices[0].message.content
        assert content is not None
        assert list(json.loads(content)) == ["city"]
        for wrong in ({"type": "nothing"}, {"$ref": "http://nowhere/"}, 7):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model="decode", messages=CHAT, response_format=wanted(wrong)
                )
            assert caught.value.param in ("response_format", "json_schema"), caught.value


def test_what_is_too_long_for_the_model_is_refused(fleet: Fleet) -> None:
    for client in clients(fleet):
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="decode", prompt="word " * 5_000)
        with pytest.raises(openai.BadRequestError, match="image_url"):
            client.chat.completions.create(
                model="decode",
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:,"}}],
                    }
                ],
            )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams(fleet: Fleet) -> None:
    body = {"model": MODEL, "messages": CHAT, "stream": True, "temperature": 0, "max_tokens": 8}
    url = f"http://{fleet.http['scheduler']}/v1/chat/completions"
    found = subprocess.run(
        ["curl", "-sN", "--max-time", "60", url, "-d", json.dumps(body)],
        check=True,
        capture_output=True,
        text=True,
    )
    events = found.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert "Paris" in text
