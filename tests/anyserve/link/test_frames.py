from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import Status, Unavailable, from_status
from anyserve.link import frames
from anyserve.link.frames import Frame, FrameDecoder, Kind, RequestBody
from anyserve.objects.leases import Block

blocks = st.builds(
    Block,
    st.from_regex(r"anyserve-[0-9]{1,5}-[0-9]{1,9}-[0-9]-[0-9]", fullmatch=True),
    st.integers(0, 2**48),
    st.integers(0, 2**40),
)
parts = st.lists(st.one_of(st.binary(max_size=50), blocks), min_size=1, max_size=5)


def decoded(data: bytes) -> list[Frame]:
    return FrameDecoder().feed(data)


def as_values(found: list[object]) -> list[object]:
    return [bytes(part) if isinstance(part, memoryview) else part for part in found]


@given(
    st.lists(st.tuples(st.integers(0, 2**63), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 60), max_size=20),
)
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(
    sent: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frames.encode(Kind.PING, call, body) for call, body in sent)
    decoder = FrameDecoder()
    found = []
    at = 0
    for cut in [*cuts, len(data)]:
        found += decoder.feed(data[at : at + cut])
        at += cut
    assert [(frame.call, bytes(frame.body)) for frame in found] == sent


@given(
    st.integers(0, 2**63),
    st.one_of(st.just(math.inf), st.floats(0, 1e6)),
    st.integers(0, 1000),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    parts,
)
def test_a_request_survives_the_link(
    call: int,
    budget: float,
    offer: int,
    request_id: str,
    extra: dict[str, str],
    sent: list[bytes | Block],
) -> None:
    pieces = frames.encode_request(call, RequestBody(budget, offer, request_id, extra, sent))
    (frame,) = decoded(b"".join(pieces))
    body = frames.decode_request(frame)
    assert (frame.call, body.budget, body.offer) == (call, budget, offer)
    assert (body.request_id, body.extra) == (request_id, extra)
    assert as_values(list(body.parts)) == sent


@given(st.integers(0, 2**63), parts)
def test_a_response_survives_the_link(call: int, sent: list[bytes | Block]) -> None:
    (frame,) = decoded(b"".join(frames.encode_parts(call, sent)))
    assert as_values(list(frames.decode_parts(frame))) == sent


@given(st.integers(0, 2**63), st.integers(0, 2**32 - 1), st.booleans(), parts)
def test_what_a_handler_calls_survives_the_link(
    call: int, number: int, once: bool, sent: list[bytes | Block]
) -> None:
    (frame,) = decoded(b"".join(frames.encode_call(call, number, once, sent)))
    found, flag, asked = frames.decode_call(frame)
    assert (frame.call, found, flag, as_values(list(asked))) == (call, number, once, sent)
    (frame,) = decoded(b"".join(frames.encode_called_parts(call, number, sent)))
    found, answered = frames.decode_called_parts(frame)
    assert (frame.call, found, as_values(list(answered))) == (call, number, sent)


@given(st.sampled_from(Status), st.text(max_size=50))
def test_an_error_keeps_its_status_and_message(status: Status, message: str) -> None:
    error = from_status(status, message)
    (frame,) = decoded(frames.encode_error(7, error))
    found = frames.decode_error(frame)
    assert (type(found), found.message) == (type(error), message)


def test_small_frames_keep_their_values() -> None:
    block = Block("anyserve-1-2-3-4", 64, 5)
    (credit, end, release, control) = decoded(
        frames.encode_credit(3, 32)
        + frames.encode_end(3, 8)
        + frames.encode_release(block)
        + frames.encode_json(Kind.READY, [{"a": 1}])
    )
    assert frames.decode_credit(credit) == 32
    assert frames.decode_end(end) == 8
    assert frames.decode_release(release) == block
    assert frames.decode_json(control) == [{"a": 1}]


def test_an_error_of_the_tree_comes_back_as_its_class() -> None:
    (frame,) = decoded(frames.encode_error(1, Unavailable("not now")))
    assert isinstance(frames.decode_error(frame), Unavailable)
