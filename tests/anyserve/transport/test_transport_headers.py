"""Request heads, metadata, timeouts and statuses."""

from __future__ import annotations

import math
from base64 import b64encode
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import InvalidArgument, NotFound, Status
from anyserve.transport import headers as h

BASE: h.Headers = (
    (":method", "POST"),
    (":path", "/a.B/C"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def without(name: str) -> h.Headers:
    return tuple(item for item in BASE if item[0] != name)


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("2H", 7200.0),
        ("3M", 180.0),
        ("4S", 4.0),
        ("5m", 0.005),
        ("6u", 6e-6),
        ("7n", 7e-9),
        ("0n", 0.0),
        ("99999999H", 99999999 * 3600.0),
    ],
)
def test_a_timeout_has_six_units(value: str, seconds: float):
    assert h.decode_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "1", "S", "-1S", "1.5S", "1s", "123456789S", "1 S", "1S\n", "٣S", "1SS", "0x1S"]
)
def test_a_malformed_timeout_is_refused(value: str):
    with pytest.raises(InvalidArgument, match="malformed grpc-timeout"):
        h.decode_timeout(value)
    with pytest.raises(h.Refusal) as refused:
        h.parse_timeout((*BASE, ("grpc-timeout", value)))
    assert ("grpc-status", "3") in refused.value.answer


@given(st.floats(min_value=0, max_value=1e7))
def test_a_sent_timeout_is_close_to_the_budget_and_never_more(seconds: float):
    sent = h.decode_timeout(h.encode_timeout(seconds))
    assert sent <= seconds + 1e-12
    assert sent >= seconds * 0.999 - 1e-9


def test_a_spent_budget_is_sent_as_zero():
    assert h.encode_timeout(-1.0) == "0n"


def test_the_shortest_of_several_timeouts_counts():
    assert h.parse_timeout((*BASE, ("grpc-timeout", "2S"), ("grpc-timeout", "1S"))) == 1.0


def test_a_request_without_a_timeout_has_no_bound():
    assert h.parse_timeout(BASE) == math.inf


def test_a_plain_request_says_its_path_and_no_more():
    head = h.parse_request(BASE)
    assert head.path == "/a.B/C"
    assert head.encoding == "identity"
    assert not head.metadata


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc;charset=x"]
)
def test_grpc_content_types_are_accepted(content_type: str):
    h.parse_request((*without("content-type"), ("content-type", content_type)))


@pytest.mark.parametrize(
    "headers, http_status",
    [
        ((*without("content-type"), ("content-type", "text/plain")), "415"),
        ((*without("content-type"), ("content-type", "application/grpc-web")), "415"),
        ((*without("content-type"), ("content-type", "application/grpc+json")), "415"),
        (without("content-type"), "415"),
        (without("te"), "400"),
        (((":method", "GET"), *without(":method")), "405"),
        ((), "405"),
    ],
)
def test_what_is_not_grpc_gets_an_http_status(headers: h.Headers, http_status: str):
    with pytest.raises(h.Refusal) as refused:
        h.parse_request(headers)
    assert dict(refused.value.answer)[":status"] == http_status


def test_an_unknown_encoding_is_refused_with_the_known_ones():
    with pytest.raises(h.Refusal) as refused:
        h.parse_request((*BASE, ("grpc-encoding", "snappy")))
    answer = dict(refused.value.answer)
    assert answer["grpc-status"] == str(int(Status.UNIMPLEMENTED))
    assert answer["grpc-accept-encoding"] == "identity,deflate,gzip"


@given(st.binary(max_size=40), st.booleans())
def test_binary_metadata_is_read_padded_or_not(value: bytes, padded: bool):
    encoded = b64encode(value).decode()
    if not padded:
        encoded = encoded.rstrip("=")
    head = h.parse_request((*BASE, ("trace-bin", encoded), ("plain", "x")))
    assert head.metadata == (("trace-bin", value), ("plain", "x"))


def test_binary_values_joined_by_commas_are_several():
    head = h.parse_request((*BASE, ("k-bin", "YQ,Yg=="), ("k-bin", "Yw")))
    assert head.metadata == (("k-bin", b"a"), ("k-bin", b"b"), ("k-bin", b"c"))


@pytest.mark.parametrize("value", ["a", "!!!!", "é", "YQ=Yg"])
def test_binary_metadata_that_is_not_base64_is_refused(value: str):
    with pytest.raises(h.Refusal) as refused:
        h.parse_request((*BASE, ("k-bin", value)))
    assert ("grpc-status", "3") in refused.value.answer


@given(st.text(st.characters(), max_size=200))
def test_a_status_message_survives_the_wire(message: str):
    sent = h.trailers(Status.NOT_FOUND, message)
    assert all(value.isascii() and value.isprintable() for _, value in sent)
    error = h.error_in_trailers(sent)
    assert isinstance(error, NotFound)
    assert error.message == message.encode("utf-8", "replace").decode()


@given(st.text(alphabet="aé€😀\n%", min_size=1500, max_size=3000))
def test_a_long_status_message_is_cut_on_a_whole_character(message: str):
    value = dict(h.trailers(Status.INTERNAL, message)).get("grpc-message", "")
    assert len(value) <= 4096
    text = unquote(value, errors="replace")
    kept = text.removesuffix("...").rstrip("\N{REPLACEMENT CHARACTER}")
    assert message.startswith(kept)


def test_ok_is_no_error_and_a_missing_status_is_one():
    assert h.error_in_trailers((("grpc-status", "0"),)) is None
    assert h.error_in_trailers(()) is not None
    assert h.error_in_trailers((("grpc-status", "x"),)) is not None


@pytest.mark.parametrize(
    "headers, status",
    [
        (((":status", "404"),), Status.UNIMPLEMENTED),
        (((":status", "503"),), Status.UNAVAILABLE),
        (((":status", "200"), ("content-type", "text/html")), Status.UNKNOWN),
        (((":status", "418"),), Status.UNKNOWN),
    ],
)
def test_answers_that_are_not_grpc_have_a_status_too(headers: h.Headers, status: Status):
    error = h.error_in_response(headers)
    assert error is not None
    assert error.status is status
