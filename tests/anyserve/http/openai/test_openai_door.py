"""The door with OpenAI's own client, against a live replica with a scripted engine."""

from __future__ import annotations

import base64
import http.client
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI


@pytest.fixture
def client(scripted_replica: Any) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"http://{scripted_replica.http}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:
        yield client


def ask(client: OpenAI, text: str | dict[str, Any], **options: Any) -> Any:
    """A chat of one message."""
    content = text if isinstance(text, str) else json.dumps(text)
    message: Any = {"role": "user", "content": content}
    options.setdefault("model", "scripted")
    return client.chat.completions.create(messages=[message], **options)


def post(address: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer to anything."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# Chats.


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = ask(client, "to be or not")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "scripted"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "to be or not")
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 4, 8)
    assert usage.prompt_tokens_details.cached_tokens == 2


def test_a_capability_is_a_model_too(client: OpenAI) -> None:
    assert ask(client, "hello", model="decode").choices[0].message.content == "hello"


def test_a_stream_gives_the_pieces_and_one_id(client: OpenAI) -> None:
    chunks = list(ask(client, "to be or not", stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert [piece for piece in pieces if piece] == ["to ", "be ", "or ", "not"]
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_where_it_is_asked_for(client: OpenAI) -> None:
    chunks = list(ask(client, "a b c", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-1].usage.total_tokens == 6
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stream_ends_with_done(scripted_replica: Any) -> None:
    connection = http.client.HTTPConnection(scripted_replica.http, timeout=20)
    body = {"model": "scripted", "messages": [{"role": "user", "content": "a"}], "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"
    text = answer.read().decode()
    connection.close()
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in text.split("\n\n") if line)


def test_several_texts_have_their_own_index(client: OpenAI) -> None:
    answer = ask(client, "a b", n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"a b"}
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 6
    texts = {0: "", 1: "", 2: ""}
    reasons = {}
    for chunk in ask(client, "a b", n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    assert set(texts.values()) == {"a b"}
    assert set(reasons.values()) == {"stop"}


def test_max_tokens_and_the_reason_pass_through(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert ask(client, "a b c", **{name: 2}).choices[0].message.content == "a b "
    answer = ask(client, {"pieces": ["x"], "reason": "length"})
    assert answer.choices[0].finish_reason == "length"


def test_logprobs_are_told(client: OpenAI) -> None:
    (choice,) = ask(client, "a b", logprobs=True).choices
    assert [(token.token, token.logprob) for token in choice.logprobs.content] == [
        ("a ", -0.5),
        ("b", -0.5),
    ]
    chunks = list(ask(client, "a b", logprobs=True, stream=True))
    told = [chunk.choices[0].logprobs for chunk in chunks]
    assert [item.content[0].token for item in told if item] == ["a ", "b"]


def test_characters_of_all_kinds_pass(client: OpenAI) -> None:
    text = 'say "hi"\\ \n\t\x01 grüß 漢字 🙂 </script>'
    assert ask(client, {"pieces": [text]}).choices[0].message.content == text
    chunks = ask(client, {"pieces": list(text)}, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def test_calls_of_tools_are_told_from_text(client: OpenAI) -> None:
    (choice,) = ask(client, {"pieces": ["Wait. ", *CALL]}, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Wait. "
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
    chunks = list(ask(client, {"pieces": ["Wait. ", *CALL]}, tools=TOOLS, stream=True))
    calls = [chunk.choices[0].delta.tool_calls for chunk in chunks]
    ((streamed,),) = [found for found in calls if found]
    assert (streamed.index, streamed.function.name) == (0, "add")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Wait. "


def test_without_tools_nothing_is_a_call(client: OpenAI) -> None:
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = ask(client, {"pieces": [CALL]}, **options).choices
        assert choice.message.content == CALL
        assert choice.message.tool_calls is None


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    first = ask(client, {"pieces": [CALL]}, tools=TOOLS).choices[0].message
    messages: Any = [
        {"role": "user", "content": "add"},
        first.model_dump(),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "2"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "thank "}, {"type": "text", "text": "you"}],
        },
    ]
    answer = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
    assert answer.choices[0].message.content == "thank you"


# Completions.


def test_a_prompt_is_completed(client: OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt="a b c")
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a b c", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6


def test_several_prompts_are_completed_in_order(client: OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=["a", "b c"], n=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["aa", "aa", "b cb c", "b cb c"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
    texts = dict.fromkeys(range(4), "")
    stream = client.completions.create(
        model="scripted", prompt=["a", "b c"], n=2, echo=True, stream=True
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == ["aa", "aa", "b cb c", "b cb c"]


def test_a_completion_has_logprobs_in_its_own_form(client: OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt="ab c", logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["ab ", "c"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 3]


# Models.


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "scripted",
        "lengths",
        "decode",
        "embedding",
    ]
    assert client.models.retrieve("scripted").owned_by == "anyserve"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5/large")
    assert caught.value.code == "model_not_found"


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are scripted, lengths") as caught:
        ask(client, "hello", model="gpt-5")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# What goes wrong.


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 7}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 100}, "n"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"seed": -1}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"functions": [{}]}, "functions"),
        ({"tools": [{"type": "magic"}]}, "tools"),
        ({"tools": "add"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 50, "logprobs": True}, "top_logprobs"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(scripted_replica: Any, fields: dict[str, Any], param: str) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "a"}], **fields}
    for stream in (False, True):
        if stream and "stream_options" in fields:
            continue
        status, answer = post(
            scripted_replica.http, "/v1/chat/completions", {**body, "stream": stream}
        )
        assert status in (400, 404), answer
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == param, answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "scripted"}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"model": "scripted", "messages": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
    ids=lambda body: body[:30],
)
def test_a_body_that_is_no_request_is_refused(scripted_replica: Any, body: bytes) -> None:
    status, answer = post(scripted_replica.http, "/v1/chat/completions", body)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    "name, status",
    [
        ("Unavailable", 503),
        ("ResourceExhausted", 429),
        ("Internal", 500),
        ("Unimplemented", 400),
        ("DeadlineExceeded", 504),
    ],
)
def test_what_the_engine_ends_with_is_told(client: OpenAI, name: str, status: int) -> None:
    with pytest.raises(openai.APIStatusError, match="as the script says") as caught:
        ask(client, {"pieces": [], "after": name})
    assert caught.value.status_code == status
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, {"pieces": [], "after": name}, stream=True)
    assert caught.value.status_code == status


def test_a_stream_that_breaks_says_so_and_is_not_done(client: OpenAI) -> None:
    stream = ask(client, {"pieces": ["a"], "after": "Unavailable"}, stream=True)
    with pytest.raises(openai.APIError, match="as the script says"):
        for _ in stream:
            pass


def test_a_deadline_is_kept(client: OpenAI) -> None:
    waits = {"pieces": [], "after": "wait"}
    for header, good in (("X-Request-Timeout", "0.05"), ("grpc-timeout", "50m")):
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, waits, extra_headers={header: good})
        assert caught.value.status_code == 504
        for wrong in ("soon", "-1", "0", "nan", "inf"):
            with pytest.raises(openai.BadRequestError, match=header) as refused:
                ask(client, "a", extra_headers={header: wrong})
            assert refused.value.type == "invalid_request_error"
            with pytest.raises(openai.BadRequestError, match=header):
                client.embeddings.create(
                    model="embedding", input="a", extra_headers={header: wrong}
                )


def test_a_client_that_goes_frees_its_slot(scripted_replica: Any, client: OpenAI) -> None:
    # As many as the engine has slots, so that one more would wait.
    streams = [ask(client, {"pieces": ["a"], "after": "wait"}, stream=True) for _ in range(32)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    assert ask(client, "free again").choices[0].message.content == "free again"


def test_the_clients_id_comes_back(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="scripted",
        messages=[{"role": "user", "content": "a"}],
        extra_headers={"X-Request-Id": "mine-7"},
    )
    assert raw.headers["x-request-id"] == "mine-7"


def test_errors_of_the_path_have_the_same_form(scripted_replica: Any) -> None:
    status, answer = post(scripted_replica.http, "/v1/nothing", {})
    assert status == 404
    assert answer["error"]["type"] == "invalid_request_error"


# Embeddings.


def test_embeddings_come_as_numbers_and_as_base64(client: OpenAI) -> None:
    plain = client.embeddings.create(model="embedding", input=["ab", "c"], encoding_format="float")
    assert [item.embedding for item in plain.data] == [[2.0, 1.0], [1.0, 1.0]]
    assert [item.index for item in plain.data] == [0, 1]
    coded: Any = client.embeddings.with_raw_response.create(
        model="embedding", input="ab", encoding_format="base64"
    )
    data = json.loads(coded.content)["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(data)) == (2.0, 1.0)
    # The client's own default is base64, which it turns into numbers.
    assert client.embeddings.create(model="embedding", input="ab").data[0].embedding == [2.0, 1.0]


def test_embeddings_and_chats_in_turns_are_each_answered_with_their_own(client: OpenAI) -> None:
    for texts in (["ab"], ["abc"], ["ab", "c"], ["abcd"]):
        found = client.embeddings.create(model="embedding", input=texts).data
        assert [item.embedding[0] for item in found] == [len(text) for text in texts]
        assert ask(client, texts[0]).choices[0].message.content == texts[0]


def test_embeddings_refuse_what_they_can_not_do(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="embedding", input=[1, 2])
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.embeddings.create(model="embedding", input=[])
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="embedding", input="a", dimensions=1)
    assert client.embeddings.create(model="embedding", input="a", dimensions=2).data
