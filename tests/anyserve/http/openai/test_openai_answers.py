"""Responses of `decode`, as the door reads them."""

import itertools
import json

import numpy as np
import pytest
from anyserve_protos.infer_wire import response_pieces
from anyserve_protos.response_head import OutputHead, encode_response_head
from anyserve_protos.response_outputs import ResponseReader
from hypothesis import given, settings
from hypothesis import strategies as st

from anyserve.errors import Internal
from anyserve.http.openai.answers import Piece, Reader

NAMES = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")


def element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def response(contents: dict[str, bytes], identity: str = "") -> bytes:
    heads = [OutputHead(name, "BYTES", (1,)) for name in contents]
    head = encode_response_head("decode", "1", identity, {}, heads)
    return b"".join(bytes(piece) for piece in response_pieces(head, list(contents.values())))


def text(piece: str, reason: str = "", given: int = 3, made: int = 1) -> dict[str, bytes]:
    return {
        "text_output": element(piece.encode()),
        "finish_reason": element(reason.encode()),
        "num_input_tokens": np.array([given], np.uint32).tobytes(),
        "num_output_tokens": np.array([made], np.uint32).tobytes(),
    }


@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.sampled_from(["", "stop"]), st.integers(0, 2**32 - 1))
    )
)
def test_what_was_written_is_read(pieces: list[tuple[str, str, int]]) -> None:
    reader = Reader(ResponseReader())
    for index, (piece, reason, made) in enumerate(pieces):
        # The head changes now and then, as the last response's does.
        read = reader.read(response(text(piece, reason, 7, made), "x" * (index % 3)))
        assert read is not None
        assert (read.text, read.finish_reason) == (piece, reason)
        assert (read.prompt_tokens, read.output_tokens) == (7, made)


TEXTS = [element(text) for text in (b"", b"a", b"bcd", b"x" * 123, b"x" * 124, b"\xff")]
TEXTS += [b"", b"\1\0\0", b"\3\0\0\0abcdef", element(b"a") + element(b"b")]
IDS = [b"\1\0\0\0", b"\2\0\0\0", b"", b"\1\0\0\0\2\0\0\0", b"x" * 200]
NUMBER = st.sampled_from([b"\0\0\0\0", b"\7\0\0\0", b"\0\0\0\7", b"\7\0", b""])
CONTENTS = st.fixed_dictionaries(
    {
        "text_output": st.sampled_from(TEXTS),
        "finish_reason": st.sampled_from([element(b""), element(b"stop"), b"", b"\1\0\0\0"]),
        "num_input_tokens": NUMBER,
        "num_output_tokens": NUMBER,
    }
)
FLAG = encode_response_head("", "", "", {"triton_final_response": False}, ())
USUAL = text("abc")
FORMS = st.builds(
    lambda contents, more, ids, tail: [
        response(
            {**contents, **more, "text_output": text, "num_output_tokens": count}
            | ({"token_ids": id, **ids} if ids is not None else {})
        )
        + tail
        for text in TEXTS
        for count in (b"\1\0\0\0", b"\2\1\0\0")
        for id in (IDS if ids is not None else IDS[:1])
    ],
    st.one_of(
        CONTENTS,
        st.sampled_from(
            [
                USUAL,
                {**USUAL, "num_input_tokens": b"\4\0\0\0"},
                {**USUAL, "finish_reason": b"\0\0\0\1"},
                dict(reversed(USUAL.items())),
            ]
        ),
    ),
    st.sampled_from(
        [{}, {"num_cached_tokens": b"\5\0\0\0"}]
        + [{"index": number} for number in (b"\0\0\0\0", b"\1\0\0\0")]
        + [{"other": b"x" * 200}]
    ),
    st.sampled_from([None, None, {}, {"index": b"\1\0\0\0"}, {"logprobs": element(b"[1]")}]),
    st.sampled_from([b"", FLAG, FLAG[:-1], b"\x1a\1x"]),
)
MESSAGES = st.lists(FORMS.flatmap(st.sampled_from), min_size=2, max_size=6)


@settings(max_examples=1000)
@given(MESSAGES)
def test_what_came_before_changes_nothing_of_what_is_read(messages: list[bytes]) -> None:
    together = ResponseReader()
    reader = Reader(together)
    for message in messages:
        assert reading(reader, message) == reading(Reader(ResponseReader()), message)
        reading(Reader(together), message)  # of another text


MORE = {
    "num_cached_tokens": [b"\5\0\0\0", b"\6\0\0\0"],
    "token_ids": [b"\1\0\0\0", b"\2\0\0\0"],
    "index": [b"\0\0\0\0", b"\1\0\0\0"],
    "logprobs": [element(b"[1]"), element(b"[2]")],
}


@pytest.mark.parametrize("order", list(itertools.permutations(MORE)), ids="-".join)
def test_whatever_is_other_than_before_is_read(order: tuple[str, ...]) -> None:
    for count, changed in itertools.product(range(1, len(MORE) + 1), MORE):
        names = order[:count]
        reader = Reader(ResponseReader())
        for number in (0, 0, 1, 1):
            more = {name: MORE[name][number if name == changed else 0] for name in names}
            message = response({**USUAL, **more}) + FLAG
            assert reading(reader, message) == reading(Reader(ResponseReader()), message)


def reading(reader: Reader, message: bytes) -> Piece | type[Internal] | None:
    try:
        return reader.read(message)
    except Internal:
        return Internal


def test_outputs_may_come_in_any_order_and_more_than_four() -> None:
    logprobs = json.dumps([{"token": "a"}]).encode()
    contents = {
        "logprobs": element(logprobs),
        "index": np.array([2], np.int32).tobytes(),
        "num_cached_tokens": np.array([5], np.uint32).tobytes(),
        **text("hi", "length"),
    }
    piece = Reader(ResponseReader()).read(response(contents))
    assert piece is not None
    assert (piece.text, piece.index, piece.cached_tokens) == ("hi", 2, 5)
    assert piece.logprobs == logprobs


def test_raw_contents_may_come_before_other_fields() -> None:
    whole = response(text("hi"))
    raw = whole[
        len(
            encode_response_head(
                "decode", "1", "", {}, [OutputHead(n, "BYTES", (1,)) for n in NAMES]
            )
        ) :
    ]
    reader = Reader(ResponseReader())
    for _ in range(2):
        piece = reader.read(raw + whole[: -len(raw)])
        assert piece is not None
        assert piece.text == "hi"


def test_a_response_without_text_brings_nothing() -> None:
    assert Reader(ResponseReader()).read(response({})) is None


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\xff",
        response(text("hi"))[:-1],
        response(text("hi"))[:-5],
        response({**text(""), "text_output": element(b"\xff")}),
    ],
    ids=["cut head", "cut contents", "one content less", "no UTF-8"],
)
def test_what_is_no_such_response_is_internal(message: bytes) -> None:
    with pytest.raises(Internal):
        Reader(ResponseReader()).read(message)
