"""Calls of tools told from text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from anyserve.http.openai.tools import ToolCall, ToolParser

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "</x>"}}\n</tool_call>'


def parse(pieces: list[str]) -> list[str | ToolCall]:
    parser = ToolParser()
    found = [item for piece in pieces for item in parser.feed(piece)]
    joined: list[str | ToolCall] = []
    for item in found + parser.end():
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


ADD = ToolCall("add", '{"a": 1, "b": "</x>"}')


@given(st.lists(st.integers(0, 200), max_size=12))
def test_however_a_text_is_cut_the_same_calls_are_found(cuts: list[int]) -> None:
    text = f"Let me see. {CALL}\n{CALL} So <tool_ is not one."
    places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    found = parse(pieces)
    assert [item for item in found if isinstance(item, ToolCall)] == [ADD, ADD]
    said = "".join(item for item in found if isinstance(item, str))
    assert said.replace("\n", "") == "Let me see.  So <tool_ is not one."


@given(st.text(alphabet="<tol_cal>/x {}", max_size=60))
def test_text_without_calls_stays_as_it_is(text: str) -> None:
    assert "".join(map(str, parse(list(text)))) == text


def test_a_call_that_is_none_is_text() -> None:
    for wrong in ("{", "[]", '{"name": 1, "arguments": {}}', '{"name": "f", "arguments": [1]}'):
        text = f"<tool_call>{wrong}</tool_call>"
        assert parse([text]) == [text]


def test_a_call_whose_end_is_missing_counts_if_it_is_whole() -> None:
    assert parse([CALL.removesuffix("</tool_call>")]) == [ADD]
    assert parse(['<tool_call>{"name": "ad']) == ['<tool_call>{"name": "ad']


def test_arguments_may_be_a_string_of_json() -> None:
    call = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parse([call]) == [ToolCall("f", '{"a": 1}')]
