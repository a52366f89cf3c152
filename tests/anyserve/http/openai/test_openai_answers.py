"""Responses of `decode`, as the door reads them."""

import json

import numpy as np
import pytest
from anyserve_protos.infer_wire import response_pieces
from anyserve_protos.response_head import OutputHead, encode_response_head
from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import Internal
from anyserve.http.openai.answers import Reader

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
    reader = Reader()
    for index, (piece, reason, made) in enumerate(pieces):
        # The head changes now and then, as the last response's does.
        read = reader.read(response(text(piece, reason, 7, made), "x" * (index % 3)))
        assert read is not None
        assert (read.text, read.finish_reason) == (piece, reason)
        assert (read.prompt_tokens, read.output_tokens) == (7, made)


def test_outputs_may_come_in_any_order_and_more_than_four() -> None:
    logprobs = json.dumps([{"token": "a"}]).encode()
    contents = {
        "logprobs": element(logprobs),
        "index": np.array([2], np.int32).tobytes(),
        "num_cached_tokens": np.array([5], np.uint32).tobytes(),
        **text("hi", "length"),
    }
    piece = Reader().read(response(contents))
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
    reader = Reader()
    for _ in range(2):
        piece = reader.read(raw + whole[: -len(raw)])
        assert piece is not None
        assert piece.text == "hi"


def test_a_response_without_text_brings_nothing() -> None:
    assert Reader().read(response({})) is None


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
        Reader().read(message)
