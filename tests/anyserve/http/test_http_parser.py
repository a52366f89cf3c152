"""The parser: any cut of the bytes gives the same requests, and bounds and doubts are refusals."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.http.parser import Continue, Event, HttpLimits, Parser, Phase, Refused
from anyserve.http.request import HttpRequest

HOST = b"Host: a\r\n"


def parse(*parts: bytes, limits: HttpLimits | None = None) -> list[Event]:
    parser = Parser(limits or HttpLimits(), 0.0)
    return [event for part in parts for event in parser.feed(part, 0.0)]


def request(data: bytes) -> HttpRequest:
    (event,) = parse(data)
    assert isinstance(event, HttpRequest)
    return event


def status(*parts: bytes, limits: HttpLimits | None = None) -> int:
    """Of the refusal that ends it."""
    event = parse(*parts, limits=limits)[-1]
    assert isinstance(event, Refused), event
    return event.status


def test_a_request_is_read_with_target_headers_and_body() -> None:
    read = request(
        b"POST /v2/a%20b/c?x=1&y=&x=2#top HTTP/1.1\r\nHost: a\r\nX-Thing:  one \r\nx-thing: two\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    )
    assert (read.method, read.path, read.body) == ("POST", "/v2/a%20b/c", b"abc")
    assert read.query == {"x": "2", "y": ""}
    assert read.headers == {"host": "a", "x-thing": "one, two"}
    assert read.persistent
    assert read.chunks


@pytest.mark.parametrize(
    ("line", "persistent", "chunks"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", True, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", False, True),
        (b"GET / HTTP/1.0\r\n", False, False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", True, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n", True, True),
    ],
)
def test_the_client_says_whether_it_keeps_the_connection(
    line: bytes, persistent: bool, chunks: bool
) -> None:
    read = request(line + b"\r\n")
    assert (read.persistent, read.chunks) == (persistent, chunks)


def test_after_a_last_request_nothing_is_read() -> None:
    events = parse(b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\n")
    assert [type(event) for event in events] == [HttpRequest]


def test_a_body_comes_in_chunks() -> None:
    read = request(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;extension=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    )
    assert read.body == b"abcde"
    assert "trailer" not in read.headers


def test_absolute_targets_are_those_of_proxies() -> None:
    assert request(b"GET http://a:1/b?c=d HTTP/1.1\r\nHost: a\r\n\r\n").path == "/b"


METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS"])
BODIES = st.binary(max_size=60)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    head = (
        draw(METHODS) + b" /" + draw(st.sampled_from([b"", b"a/b?c=d", b"x" * 90])) + b" HTTP/1.1"
    )
    fields = [b"Host: a", b"X: " + draw(st.sampled_from([b"", b"y" * 80, b"a, b"]))]
    body = draw(BODIES)
    form = draw(st.sampled_from(["none", "length", "chunks", "gzip", "expect", "upgrade"]))
    if form == "none":
        body = b""
    elif form == "chunks":
        fields.append(b"Transfer-Encoding: chunked")
        cut = draw(st.integers(0, len(body)))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        if form == "gzip":
            fields.append(b"Content-Encoding: gzip")
            body = gzip.compress(body)
        elif form == "upgrade":
            fields += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"]
        elif form == "expect":
            fields.append(b"Expect: 100-continue")
        fields.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([head, *fields, b"", b""]) + body


SPOILT = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@given(st.lists(messages(), max_size=4), st.sampled_from(SPOILT), st.lists(st.integers(0, 900)))
def test_however_the_bytes_are_cut_they_make_the_same_events(
    whole: list[bytes], end: bytes, cuts: list[int]
) -> None:
    data = b"".join(whole) + end
    limits = HttpLimits(body=400)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(places)]
    assert parse(*parts, limits=limits) == parse(data, limits=limits)


@given(st.lists(messages(), min_size=1, max_size=3))
def test_byte_by_byte_they_do_too(whole: list[bytes]) -> None:
    data = b"".join(whole)
    events = parse(*(bytes([byte]) for byte in data))
    assert events == parse(data)
    assert sum(isinstance(event, HttpRequest) for event in events) == len(whole)


@given(st.binary(max_size=200), st.integers(1, 9))
def test_garbage_makes_a_refusal_or_nothing_and_never_an_exception(data: bytes, size: int) -> None:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    for event in parse(*parts):
        assert not isinstance(event, Refused) or 400 <= event.status < 600


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\x00\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: a\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n", 505),
        (b"GET /\r\n", 505),
        (b"get / HTTP/1.1\r\nHost: a\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n", 417),
        (b"GET /?" + b"&a=1" * 200 + b" HTTP/1.1\r\nHost: a\r\n", 400),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(lines: bytes, expected: int) -> None:
    assert status(lines + b"\r\n") == expected


def test_a_client_is_told_to_go_on_before_its_request_is_whole() -> None:
    parser = Parser(HttpLimits(), 0.0)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert parser.feed(head, 0.0) == [Continue.CONTINUE]
    (event,) = parser.feed(b"ab", 0.0)
    assert isinstance(event, HttpRequest)


# Bounds.


def test_a_body_too_large_is_refused_by_its_length_alone() -> None:
    head = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    (event,) = parse(head % (32 * 1024 * 1024 + 1))
    assert event == Refused(413, "the body is larger than 33554432 bytes", "/v1/x")
    assert parse(head % (32 * 1024 * 1024)) == [Continue.CONTINUE]


def test_a_body_too_large_in_chunks_is_refused_when_it_is() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    limits = HttpLimits(body=100)
    assert status(head, b"32\r\n", b"x" * 50, b"\r\n33\r\n", b"x" * 51, limits=limits) == 413


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_compressed_body_is_bounded_by_what_it_becomes(compress: object) -> None:
    body = compress(b"x" * 100_000)  # type: ignore[operator]
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    coding = b"gzip" if compress is gzip.compress else b"deflate"
    data = head % (coding, len(body)) + body
    assert status(data, limits=HttpLimits(body=99_999)) == 413
    (event,) = parse(data, limits=HttpLimits(body=100_000))
    assert isinstance(event, HttpRequest)
    assert event.body == b"x" * 100_000


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        (b"gzip", b"no gzip", 400),
        (b"gzip", gzip.compress(b"cut short")[:-4], 400),
        (b"gzip", gzip.compress(b"") + b"more", 400),
        (b"br", b"abc", 415),
        (b"gzip, gzip", b"abc", 415),
    ],
)
def test_a_body_that_can_not_be_decompressed_is_refused(
    coding: bytes, body: bytes, expected: int
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    assert status(head % (coding, len(body)) + body) == expected


@pytest.mark.parametrize("step", [1 << 20, 1000])
def test_heads_are_bounded(step: int) -> None:
    def cut(data: bytes) -> list[bytes]:
        return [data[at : at + step] for at in range(0, len(data), step)]

    begin = b"GET / HTTP/1.1\r\nHost: a\r\n"
    assert status(*cut(begin + b"X: " + b"y" * 70_000 + b"\r\n\r\n")) == 431
    assert status(*cut(begin + b"X: y\r\n" * 100 + b"\r\n")) == 431
    assert status(*cut(b"GET /" + b"y" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n")) == 414
    fine = begin + b"X: " + b"y" * 60_000 + b"\r\n" + b"Z: y\r\n" * 90 + b"\r\n"
    assert isinstance(parse(*cut(fine * 3))[-1], HttpRequest)


@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
def test_what_would_grow_without_end_is_refused(endless: bytes) -> None:
    parser = Parser(HttpLimits(), 0.0)
    events = parser.feed(endless, 0.0)
    for _ in range(20):
        events += parser.feed(b"y" * 8192, 0.0)
    (event,) = events
    assert isinstance(event, Refused)
    assert event.status == 431


def test_a_large_body_in_many_small_chunks_is_no_large_head() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = parse(head, *[b"1\r\nx\r\n" * 100] * 200, b"0\r\n\r\n")
    (event,) = events
    assert isinstance(event, HttpRequest)
    assert len(event.body) == 20_000


# Time.


def test_each_part_of_a_request_has_its_time() -> None:
    parser = Parser(HttpLimits(), 100.0)
    assert parser.deadline == 175.0
    parser.feed(b"POST / HTTP/1.1\r\n", 120.0)
    assert parser.deadline == 130.0
    parser.feed(b"Host: a\r\n", 129.0)
    assert parser.deadline == 130.0
    parser.feed(b"Content-Length: 100000\r\n\r\n", 129.5)
    assert parser.deadline == 149.5
    parser.feed(b"x" * 32768, 140.0)
    assert parser.deadline == 151.5
    parser.feed(b"x" * 67232, 150.0)
    assert parser.deadline == 225.0
    parser.idle(300.0)
    assert parser.deadline == 375.0


@pytest.mark.parametrize(
    "begun", [b"GET /", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
)
def test_who_is_too_slow_is_told_so(begun: bytes) -> None:
    parser = Parser(HttpLimits(), 0.0)
    parser.feed(begun, 0.0)
    (event,) = parser.expire()
    assert isinstance(event, Refused)
    assert event.status == 408
    assert parser.phase is Phase.DONE
    assert parser.deadline == math.inf


def test_who_sends_nothing_is_told_nothing() -> None:
    assert Parser(HttpLimits(), 0.0).expire() == []
