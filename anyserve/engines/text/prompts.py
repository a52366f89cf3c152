"""What a text continues: a raw prompt, or the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs

from anyserve.errors import InvalidArgument

MAX_MESSAGES = 256
ROLES = ("system", "user", "assistant")


@attrs.frozen
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


Prompt = str | Sequence[Message]
"""A raw prompt goes to the model as it is; messages go through the model's chat template."""


def parse_messages(text: str) -> tuple[Message, ...]:
    """The chat in JSON `text`, a list of `{"role": ..., "content": ...}`.

    Raises `InvalidArgument` saying which message is wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"messages: not JSON: {error}") from None
    if not isinstance(values, list) or not values:
        raise InvalidArgument("messages: a list of at least one message is expected")
    if len(values) > MAX_MESSAGES:
        raise InvalidArgument(f"messages: {len(values)}, but at most {MAX_MESSAGES} are taken")
    return tuple(_message(index, value) for index, value in enumerate(values))


def _message(index: int, value: Any) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise InvalidArgument(f"messages[{index}]: an object of role and content is expected")
    if value["role"] not in ROLES:
        raise InvalidArgument(f"messages[{index}]: the role is one of {', '.join(ROLES)}")
    if not isinstance(value["content"], str):
        raise InvalidArgument(f"messages[{index}]: the content is text")
    return Message(value["role"], value["content"])


def check_prompt(prompt: Prompt, max_context: int) -> int:
    """The prompt's length in characters.

    Raises `InvalidArgument` for an empty prompt or one far longer than the context.

    The length in tokens is known only after tokenizing, which takes time with the length in bytes.
    """
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    length = sum(map(len, texts))
    if not texts or (isinstance(prompt, str) and not prompt):
        raise InvalidArgument("the prompt is empty")
    if length > max_context * _MOST_CHARACTERS:
        raise InvalidArgument(
            f"the prompt has {length} characters, but the context holds {max_context} tokens"
        )
    return length


_MOST_CHARACTERS = 64
"""Characters a token: well over what tokenizers make of any text that is worth reading."""
