"""What a text continues: a raw prompt, or the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from anyserve.errors import InvalidArgument

MAX_MESSAGES = 256
MAX_TOOLS = 128
MAX_DEPTH = 64
"""Levels of lists and objects in what a template is given."""


@attrs.frozen
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user`, `assistant`, `tool`, or what else the model's template knows."""
    content: str | None
    """None where an assistant only calls tools."""
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    """What else templates look at, as JSON values: `name`, `tool_calls`, `tool_call_id`."""


@attrs.frozen
class Chat:
    """Messages that go through the model's chat template, which then asks for an answer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call, as OpenAI's API describes them."""


Prompt: TypeAlias = str | Chat
"""A raw prompt goes to the model as it is."""


def parse_chat(messages: str, tools: str | None = None) -> Chat:
    """The chat in JSON: a list of `{"role": ..., "content": ...}`, and one of tools.

    Raises `InvalidArgument` saying which message or tool is wrong.
    """
    turns = _list("messages", messages, MAX_MESSAGES)
    if not turns:
        raise InvalidArgument("messages: a list of at least one message is expected")
    functions = _list("tools", tools, MAX_TOOLS) if tools else []
    return Chat(
        tuple([_message(f"messages[{index}]", value) for index, value in enumerate(turns)]),
        tuple([_tool(f"tools[{index}]", value) for index, value in enumerate(functions)]),
    )


def _list(name: str, text: str, most: int) -> list[Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: not JSON: {error}") from None
    if not isinstance(values, list):
        raise InvalidArgument(f"{name}: a list is expected")
    if len(values) > most:
        raise InvalidArgument(f"{name}: {len(values)}, but at most {most} are taken")
    _check_depth(name, values, MAX_DEPTH)
    return values


def _check_depth(name: str, value: Any, left: int) -> None:
    if not left:
        raise InvalidArgument(f"{name}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(name, item, left - 1)


_EXTRA = {"name": str, "tool_calls": list, "tool_call_id": str, "reasoning_content": str}


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise InvalidArgument(f"{where}: an object of role and content is expected")
    extra = {key: item for key, item in value.items() if key not in ("role", "content")}
    for key, item in list(extra.items()):
        if item is None or item == []:
            del extra[key]  # clients send an answer back with all that it might have had
        elif key not in _EXTRA:
            raise InvalidArgument(f"{where}: {key[:40]!r} is not known here")
        elif not isinstance(item, _EXTRA[key]):
            raise InvalidArgument(f"{where}: {key} has the wrong type")
    content = value.get("content")
    if content is None and "tool_calls" not in extra:
        raise InvalidArgument(f"{where}: the content is missing")
    return Message(value["role"], _content(where, content), extra)


def _content(where: str, value: Any) -> str | None:
    """Text, or the text of a list of parts that are all text."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidArgument(f"{where}: the content is text, or a list of parts")
    return "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(value))


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidArgument(f"{where}: an object of type and text is expected")
    if part["type"] != "text":
        raise InvalidArgument(f"{where}: the model takes text, not {part['type'][:40]!r}")
    if not isinstance(part.get("text"), str):
        raise InvalidArgument(f"{where}: the text is missing")
    return str(part["text"])


def _tool(where: str, value: Any) -> Mapping[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type") != "function":
        raise InvalidArgument(f"{where}: an object of type function is expected")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidArgument(f"{where}: the function's name is missing")
    return value  # type: ignore[no-any-return]  # it is a dict: it has a function
