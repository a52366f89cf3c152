"""W3C trace context: what is taken over, what is made anew, and what is passed on."""

from __future__ import annotations

import re
import string

import pytest
from anyserve_actors import tracing
from hypothesis import assume, given
from hypothesis import strategies as st

from anyserve.traces import TRACEPARENT, TRACESTATE, Trace, at_door

HEX = "0123456789abcdef"
VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORM = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def digits(length: int) -> st.SearchStrategy[str]:
    return st.text(HEX, min_size=length, max_size=length)


ids = digits(32).filter(lambda id: id != "0" * 32)
spans = digits(16).filter(lambda span: span != "0" * 16)


def of(traceparent: str, *states: str) -> Trace:
    trace = at_door([(TRACEPARENT, traceparent), *((TRACESTATE, state) for state in states)])
    assert trace is not None
    assert FORM.fullmatch(trace.traceparent)
    return trace


@given(ids, spans, digits(2))
def test_a_valid_header_goes_on_with_a_new_parent(id: str, span: str, flags: str) -> None:
    trace = of(f"00-{id}-{span}-{flags}")
    assert (trace.id, trace.parent) == (id, span)
    assert trace.span != span
    assert trace.flags == int(flags, 16) & 3  # sampled and random, which is all that is defined
    child = trace.child()
    assert (child.id, child.parent, child.flags) == (id, trace.span, trace.flags)
    assert child.span not in (trace.span, span)


@given(
    digits(2).filter(lambda version: version not in ("00", "ff")),
    ids,
    spans,
    st.sampled_from(["", "-", "-what-comes-later"]),
)
def test_what_later_versions_add_is_left_out(version: str, id: str, span: str, more: str) -> None:
    trace = of(f"{version}-{id}-{span}-01{more}")
    assert (trace.id, trace.parent) == (id, span)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        VALID.upper(),
        VALID + "-",
        VALID + "-00",
        VALID + "0",
        " " + VALID,
        VALID + "\n",
        VALID[:-1],
        VALID[1:],
        "ff" + VALID[2:],
        "01" + VALID[2:] + ".",
        VALID.replace("-", "_"),
        VALID.replace("0af7", "0äf7"),
        VALID.replace("0af7", "٠af7"),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
def test_what_is_malformed_begins_a_new_trace_without_state(header: str) -> None:
    trace = of(header, "rojo=00f067aa0ba902b7")
    assert trace.id not in header
    assert (trace.parent, trace.state, trace.flags) == ("", "", 2)


@given(st.integers(0, len(VALID) - 1), st.sampled_from(HEX + string.printable))
def test_one_wrong_character_anywhere_begins_a_new_trace(at: int, character: str) -> None:
    changed = VALID[:at] + character + VALID[at + 1 :]
    assume(character != VALID[at])
    trace = of(changed, "a=1")
    valid = VALID[at] != "-" and character in HEX
    assert (trace.id == changed[3:35]) is valid
    assert trace.state == ("a=1" if valid else "")


@given(st.text())
def test_no_header_whatever_breaks_the_door(header: str) -> None:
    of(header, header)


def test_several_headers_count_as_malformed() -> None:
    trace = at_door([(TRACEPARENT, VALID), (TRACEPARENT, VALID)])
    assert trace is not None
    assert trace.id not in VALID


def test_states_of_several_headers_go_along_in_their_order() -> None:
    trace = of(VALID, "congo=1", "rojo=2,blue=3")
    assert trace.headers == (
        (TRACEPARENT, trace.traceparent),
        (TRACESTATE, "congo=1,rojo=2,blue=3"),
    )
    assert trace.child().state == trace.state


def test_what_metadata_say_of_a_trace_is_replaced() -> None:
    metadata = [("a", "1"), (TRACEPARENT, VALID), ("b-bin", b"2"), (TRACESTATE, "x=1")]
    trace = of("malformed", "x=1")
    assert trace.onto(metadata) == (
        ("a", "1"),
        ("b-bin", b"2"),
        (TRACEPARENT, trace.traceparent),
    )


async def test_without_a_header_there_is_a_trace_only_while_somebody_records() -> None:
    metadata = [("a", "1"), (TRACESTATE, "x=1")]
    assert at_door(metadata) is None
    tracing.start()
    try:
        trace = at_door(metadata)
    finally:
        tracing.stop()
    assert trace is not None
    assert (trace.parent, trace.state, trace.flags) == ("", "", 3)
    assert at_door(metadata) is None
