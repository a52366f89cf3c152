"""A model's chat template: what makes a chat the raw prompt that the model was trained on.

Templates come with models, in Jinja; they run in Jinja's sandbox, and what they write is bounded.
They see what they would in Hugging Face's transformers, for which they are written.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from anyserve.engines.errors import CannotLoad
from anyserve.engines.prompts import Chat, Message
from anyserve.errors import InvalidArgument

if TYPE_CHECKING:
    import jinja2

MAX_PIECES = 1_000_000
"""What a template may write, in pieces: ends loops that no chat of a bearable size needs."""


class TemplateError(ValueError):
    """A template that can't be read."""


class _Refused(Exception):
    """The template has called `raise_exception`."""


@attrs.frozen(eq=False)
class ChatTemplate:
    """A template that has been read; `read_template` makes one."""

    _template: jinja2.Template
    _specials: Mapping[str, str]
    system: bool = True
    """It takes a system message."""
    tools: bool = False
    """It tells the model of tools."""
    text_arguments: bool = False
    """It wants a tool call's arguments as JSON text; others want the object in it."""

    def render(self, chat: Chat, most: int) -> str:
        """The prompt that `chat` becomes, which asks for an answer.

        most: characters of the prompt. Blocks for some 50 µs and 20 a message. Raises
        `InvalidArgument` for a chat that the template refuses or can't take, in its words, or
        whose prompt is longer.
        """
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=[self._turn(message) for message in chat.messages],
                tools=list(chat.tools) or None,
                add_generation_prompt=True,
                **self._specials,
            ):
                pieces.append(piece)
                length += len(piece)
                if length > most or len(pieces) > MAX_PIECES:
                    raise InvalidArgument(f"the prompt has more than {most} characters")
        except _Refused as error:
            raise InvalidArgument(f"the chat template says: {error}") from None
        except InvalidArgument:
            raise
        except Exception as error:  # whatever its expressions raise on what they did not expect
            raise InvalidArgument(
                f"the chat template can't take this chat: {type(error).__name__}: {error}"
            ) from None
        return "".join(pieces)

    def _turn(self, message: Message) -> dict[str, Any]:
        turn = {"role": message.role, "content": message.content or "", **message.extra}
        if "tool_calls" in turn and not self.text_arguments:
            turn["tool_calls"] = [_with_object(call) for call in turn["tool_calls"]]
        return turn


def _with_object(call: Any) -> Any:
    """A tool call with its arguments as an object, if they are the JSON text of one."""
    try:
        arguments = json.loads(call["function"]["arguments"])
    except (TypeError, KeyError, ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**call["function"], "arguments": arguments}}


def read_template(source: str, *, bos: str = "", eos: str = "") -> ChatTemplate:
    """The template in `source`, and what it takes, found by trying it.

    bos, eos: the texts of the tokens that begin and end a text. Raises `TemplateError` for one
    that can't be read, `CannotLoad` where Jinja is missing.
    """
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise CannotLoad("the package jinja2 is missing: pip install 'anyserve[local]'") from None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from None
    return _tried(ChatTemplate(template, {"bos_token": bos, "eos_token": eos}))


def _tried(template: ChatTemplate) -> ChatTemplate:
    question = Message("user", "question")
    return attrs.evolve(
        template,
        system="instruction" in _try(template, [Message("system", "instruction"), question]),
        tools="a_tool" in _try(template, [question], [_TOOL]),
        text_arguments="an_argument" not in _try(template, [question, _CALL]),
    )


_TOOL = {
    "type": "function",
    "function": {
        "name": "a_tool",
        "description": "does something",
        "parameters": {"type": "object", "properties": {"an_argument": {"type": "string"}}},
    },
}
_CALL = Message(
    "assistant",
    None,
    {
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "a_tool", "arguments": '{"an_argument": "x"}'},
            }
        ]
    },
)


def _try(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    try:
        return template.render(Chat(tuple(messages), tuple(tools)), 1 << 20)
    except InvalidArgument:
        return ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise _Refused(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
