"""Messages cut out of arbitrary chunks, inflated under a cap."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import AnyServeError, Internal, InvalidArgument, ResourceExhausted
from anyserve.transport.framing import MessageReader
from anyserve.transport.framing import pack as parts

MIB = 1024 * 1024


def pack(message: bytes) -> bytes:
    return b"".join(parts((message,)))


def compressed(message: bytes, encoding: str) -> bytes:
    body = gzip.compress(message) if encoding == "gzip" else zlib.compress(message)
    return struct.pack(">BI", 1, len(body)) + body


def reader(
    data: list[bytes], encoding: str = "identity", limit: int = MIB, together: int = 1
) -> MessageReader:
    chunks = iter(data)

    async def receive() -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return list(itertools.islice(chunks, together))

    return MessageReader(receive, encoding, limit)


async def read_all(
    data: list[bytes], encoding: str = "identity", limit: int = MIB, together: int = 1
) -> list[bytes]:
    source = reader(data, encoding, limit, together)
    messages = []
    while (message := await source.read()) is not None:
        messages.append(message)
    return messages


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    messages=st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=5),
    encoding=st.sampled_from(["gzip", "deflate"]),
    cuts=st.lists(st.integers(min_value=0), max_size=12),
    together=st.integers(1, 4),
)
def test_messages_come_back_however_the_bytes_are_cut(messages, encoding, cuts, together):
    wire = b"".join(
        compressed(message, encoding) if squeeze else pack(message) for message, squeeze in messages
    )
    assert trio.run(read_all, chunked(wire, cuts), encoding, MIB, together) == [
        m for m, _ in messages
    ]


@given(data=st.binary(max_size=200), encoding=st.sampled_from(["identity", "gzip", "deflate"]))
def test_hostile_bytes_end_in_messages_or_in_an_error_of_ours(data, encoding):
    try:
        messages = trio.run(read_all, [data], encoding)
    except AnyServeError:
        return
    assert sum(len(message) for message in messages) <= len(data) * 1100


@pytest.mark.parametrize("size", range(1, 5))
async def test_half_a_prefix_is_an_error(size: int):
    with pytest.raises(InvalidArgument, match=f"ends {size} bytes into a message's prefix"):
        await read_all([pack(b"abc")[:size]])


async def test_a_cut_message_is_an_error_that_says_how_much_is_missing():
    with pytest.raises(InvalidArgument, match="ends 2 bytes before its message does"):
        await read_all([pack(b"abcde")[:-2]])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_cut_compressed_message_is_an_error(encoding: str):
    with pytest.raises(InvalidArgument, match="bytes before its message does"):
        await read_all([compressed(b"abcde" * 100, encoding)[:-2]], encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compression_that_ends_early_late_or_never_began_is_an_error(encoding: str):
    body = compressed(b"abcde" * 100, encoding)[5:]
    for wrong in (body[:-6], body + b"more", b"garbage", b""):
        with pytest.raises(InvalidArgument):
            await read_all([struct.pack(">BI", 1, len(wrong)) + wrong], encoding)


async def test_a_long_length_prefix_is_refused_before_anything_is_held():
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhausted, match="4294967295 bytes is over the limit"):
            await read_all([b"\0\xff\xff\xff\xff"])
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()


async def test_a_bomb_is_refused_without_holding_more_than_the_cap():
    bomb = compressed(b"\0" * (64 * MIB), "gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhausted, match="inflates to more is over the limit"):
            await read_all([bomb], "gzip", limit=4 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 6 * MIB
    finally:
        tracemalloc.stop()


async def test_a_bomb_leaves_other_tasks_their_turns():
    bomb = compressed(b"\0" * (64 * MIB), "gzip")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        with pytest.raises(ResourceExhausted):
            await read_all([bomb], "gzip", limit=16 * MIB)
        nursery.cancel_scope.cancel()
    assert turns >= 16


@pytest.mark.parametrize("extra", [0, 1])
async def test_the_cap_is_exact(extra: int):
    message = bytes(1000 + extra)
    for wire, encoding in ((pack(message), "identity"), (compressed(message, "gzip"), "gzip")):
        if extra:
            with pytest.raises(ResourceExhausted):
                await read_all([wire], encoding, limit=1000)
        else:
            assert await read_all([wire], encoding, limit=1000) == [message]


async def test_a_compressed_message_in_a_call_that_names_no_compression_is_internal():
    with pytest.raises(Internal, match="names no grpc-encoding"):
        await read_all([compressed(b"abc", "gzip")])


async def test_an_unknown_flag_is_internal():
    with pytest.raises(Internal, match="flag 7"):
        await read_all([b"\x07\0\0\0\0"])
