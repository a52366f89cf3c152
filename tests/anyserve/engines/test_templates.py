"""Chat templates: what they see, what they refuse, and what they can't do to us."""

from __future__ import annotations

from typing import Any

import pytest

from anyserve.engines.prompts import Chat, Message
from anyserve.engines.templates import TemplateError, read_template
from anyserve.errors import InvalidArgument

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOLS = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}" + PLAIN
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    + PLAIN
)
CALLS = (
    "{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments ARGUMENTS }}){% endfor %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "clock", "description": "Zeit & “mehr” <b>"}}


def chat(*turns: str, tools: tuple[dict[str, Any], ...] = ()) -> Chat:
    roles = ["user", "assistant"] * len(turns)
    return Chat(tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False)), tools)


def called(arguments: str) -> Chat:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return Chat((Message("user", "?"), Message("assistant", None, {"tool_calls": [call]})))


def test_a_template_sees_turns_and_the_tokens_that_begin_and_end_a_text() -> None:
    template = read_template(PLAIN, bos="<s>", eos="</s>")
    assert template.render(chat("a", "b", "c"), 100) == (
        "<s>[user]a</s>[assistant]b</s>[user]c</s>[assistant]"
    )


def test_what_a_template_takes_is_found_by_trying_it() -> None:
    assert read_template(PLAIN).system
    assert not read_template(PLAIN).tools
    assert read_template(TOOLS).tools
    assert not read_template(NO_SYSTEM).system


def test_tools_reach_the_template_as_json_without_escapes_for_html() -> None:
    text = read_template(TOOLS).render(chat("a", tools=(TOOL,)), 1000)
    assert '"description": "Zeit & “mehr” <b>"' in text


@pytest.mark.parametrize(
    "how, expected",
    [(" | tojson", 'f({"a": 1})'), (" + ''", 'f({"a":1})')],
    ids=["object", "text"],
)
def test_arguments_of_calls_are_what_the_template_wants(how: str, expected: str) -> None:
    template = read_template(CALLS.replace(" ARGUMENTS", how))
    assert template.render(called('{"a":1}'), 100) == expected


@pytest.mark.parametrize("arguments", ["", "[1]", "{", "null"])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    template = read_template(CALLS.replace(" ARGUMENTS", " | tojson"))
    assert template.render(called(arguments), 100) == f'f("{arguments}")'


def test_an_assistants_turn_without_content_is_empty() -> None:
    text = read_template(PLAIN).render(called("{}"), 100)
    assert "[assistant][assistant]" in text


def test_a_templates_own_refusal_is_the_clients_fault_in_its_words() -> None:
    refused = Chat((Message("system", "x"), Message("user", "y")))
    with pytest.raises(InvalidArgument, match="chat template says: no system here"):
        read_template(NO_SYSTEM).render(refused, 100)


@pytest.mark.parametrize(
    "source",
    ["{{ messages[7].content }}", "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}"],
)
def test_what_a_template_stumbles_over_is_named(source: str) -> None:
    with pytest.raises(InvalidArgument, match="can't take this chat"):
        read_template(source).render(chat("a"), 100)


def test_a_template_that_cant_be_read_is_named() -> None:
    with pytest.raises(TemplateError, match="TemplateSyntaxError"):
        read_template("{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_template_gets_at_nothing_outside_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidArgument, match=r"SecurityError|OverflowError"):
        read_template(source).render(chat("a"), 10_000_000)


def test_what_a_template_writes_is_bounded() -> None:
    long = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}"
    with pytest.raises(InvalidArgument, match="more than 50 characters"):
        read_template(long).render(chat("a"), 50)
    with pytest.raises(InvalidArgument, match="more than 100 characters"):
        read_template(PLAIN).render(chat("a" * 200), 100)


def test_loops_may_be_left_and_the_date_be_told() -> None:
    source = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert read_template(source).render(chat("a"), 100) == "01"
    year = read_template("{{ strftime_now('%Y') }}").render(chat("a"), 100)
    assert year.isdigit()
