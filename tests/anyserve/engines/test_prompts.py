"""Chats in JSON become values, or are refused by the number of what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anyserve.engines.prompts import Chat, Message, parse_chat
from anyserve.errors import InvalidArgument

TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "text, message",
    [
        ("nope", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "a list"),
        ("[]", "at least one"),
        ("[1]", r"messages\[0\]: an object"),
        ('[{"role": "user"}]', r"messages\[0\]: the content is missing"),
        ('[{"role": "user", "content": "", "audio": 1}]', r"messages\[0\]: 'audio'"),
        ('[{"role": "user", "content": "", "name": 1}]', r"messages\[0\]: name"),
        ('[{"role": [], "content": ""}]', r"messages\[0\]: an object"),
        ('[{"role": "user", "content": 1}]', r"messages\[0\]: the content is text"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "text, not 'image_url'"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', r"content\[0\]: the text is missing"),
        ('[{"role": "user", "content": [1]}]', r"content\[0\]: an object"),
        (json.dumps([{"role": "user", "content": "a"}] * 257), "257"),
        (json.dumps([{"role": "user", "content": "", "tool_calls": deep(70)}]), "deeper"),
    ],
    ids=lambda value: value[:24],
)
def test_messages_that_are_none_are_refused_by_their_number(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_chat(text)


@pytest.mark.parametrize(
    "tools, message",
    [
        ("1", "tools: a list"),
        ("[1]", r"tools\[0\]: an object"),
        (json.dumps([TOOL, {"type": "web_search"}]), r"tools\[1\]: an object"),
        ('[{"type": "function", "function": {}}]', "name is missing"),
        (json.dumps([TOOL] * 129), "129"),
    ],
    ids=lambda value: value[:24],
)
def test_tools_that_are_none_are_refused_by_their_number(tools: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_chat('[{"role": "user", "content": ""}]', tools)


def test_messages_become_values() -> None:
    text = '[{"role": "system", "content": "a"}, {"role": "user", "content": "ü\\n"}]'
    assert parse_chat(text) == Chat((Message("system", "a"), Message("user", "ü\n")))


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    chat = parse_chat(json.dumps([{"role": "user", "content": parts, "name": None}]))
    assert chat == Chat((Message("user", "a b"),))


def test_calls_of_tools_and_their_results_are_kept_for_the_template() -> None:
    turns = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12:00", "tool_call_id": "1"},
    ]
    chat = parse_chat(json.dumps(turns), json.dumps([TOOL]))
    assert chat.tools == (TOOL,)
    assert chat.messages[1] == Message("assistant", None, {"tool_calls": [CALL]})
    assert chat.messages[2].extra == {"tool_call_id": "1"}
