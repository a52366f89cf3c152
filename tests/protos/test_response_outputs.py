"""Outputs read by name, of responses that are alike and that are not, beside Google's protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from anyserve_protos.response_outputs import ResponseReader
from anyserve_protos.wire import WireError
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2


def part(**fields: Any) -> bytes:
    """A piece of a response; all pieces of one make it up, in any order."""
    return bytes(service_pb2.ModelInferResponse(**fields).SerializeToString())


def output(name: str) -> bytes:
    return part(outputs=[{"name": name, "datatype": "INT32", "shape": [1]}])


def flag(value: bool) -> bytes:
    return part(parameters={"triton_final_response": {"bool_param": value}})


CONTENTS = [b"", b"x", flag(True), b"x" * (len(flag(True)) - 2), b"x" * 200]
PARTS = [part(id="mine"), output("a"), output("b"), flag(True), flag(False)]
PARTS += [part(raw_output_contents=[content]) for content in CONTENTS]
RAW = st.sampled_from(PARTS[-len(CONTENTS) :])
USUAL = st.builds(
    lambda before, content, behind: b"".join([PARTS[0], *before, content, *behind]),
    st.sampled_from([[output("a")], [output("a"), flag(False)]]),
    RAW,
    st.lists(st.one_of(st.sampled_from(PARTS), RAW), max_size=2),
)
ANY = st.builds(b"".join, st.lists(st.sampled_from(PARTS), max_size=5))
CUT = st.builds(lambda data, cut: data[: len(data) - cut], st.one_of(USUAL, ANY), st.integers(0, 2))


def expected(data: bytes) -> dict[str, bytes] | None:
    """What Google's protobuf reads; None where the outputs and their contents do not match."""
    try:
        response = service_pb2.ModelInferResponse.FromString(data)
    except DecodeError:
        return None
    names = [output.name for output in response.outputs]
    contents = response.raw_output_contents
    return dict(zip(names, contents, strict=True)) if len(names) == len(contents) else None


@settings(max_examples=1000)
@given(st.lists(CUT, max_size=5))
def test_one_reader_reads_whatever_responses_a_request_has(given: list[bytes]) -> None:
    reader = ResponseReader()
    for data in given:
        for message in (data, memoryview(data)):
            wanted = expected(data)
            if wanted is None:
                with pytest.raises(WireError):
                    reader.outputs(message)
            else:
                assert reader.outputs(message) == wanted


@pytest.mark.parametrize("place", ["before", "behind"])
def test_responses_that_are_alike_are_learnt_once(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ResponseReader()
    learnt = []
    learn = reader._learn
    monkeypatch.setattr(reader, "_learn", lambda data: learnt.append(data) or learn(data))
    for number in range(9):
        response = PARTS[0] + output("a") + part(raw_output_contents=[b"x" * number])
        data = response + flag(False) if place == "behind" else flag(False) + response
        assert reader.outputs(data) == {"a": b"x" * number}
    assert len(learnt) == 1


def test_outputs_without_contents_are_refused() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="a")
    with pytest.raises(WireError, match="1 outputs, and contents of 0"):
        ResponseReader().outputs(response.SerializeToString())


@given(st.binary(max_size=40))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    reader = ResponseReader()
    try:
        first = reader.outputs(data)
    except WireError:
        return
    assert reader.outputs(data) == first
