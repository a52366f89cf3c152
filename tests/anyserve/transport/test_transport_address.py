"""The notation of addresses, and the flood guard's arithmetic."""

from __future__ import annotations

import pytest

from anyserve.errors import InvalidArgument
from anyserve.transport.address import TcpAddress, UnixAddress, parse_address
from anyserve.transport.flood import FloodGuard


@pytest.mark.parametrize(
    "text, address",
    [
        ("127.0.0.1:8001", TcpAddress("127.0.0.1", 8001)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:8001", TcpAddress("::1", 8001)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: object):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:http", "host:65536", "::1:80", "host:-1", "unix:"]
)
def test_what_is_no_address_is_refused_by_name(text: str):
    with pytest.raises(InvalidArgument, match=repr(text)):
        parse_address(text)


def test_a_flood_is_more_than_the_allowance_in_one_second():
    guard = FloodGuard(per_second=10)
    assert not any(guard.exceeded(1, now=5.0) for _ in range(10))
    assert guard.exceeded(1, now=5.9)


def test_the_same_number_over_more_seconds_is_no_flood():
    guard = FloodGuard(per_second=10)
    assert not any(guard.exceeded(1, now=tick * 0.1) for tick in range(100))


def test_light_frames_weigh_less():
    guard = FloodGuard(per_second=10)
    assert not any(guard.exceeded(0.1, now=1.0) for _ in range(100))
    assert guard.exceeded(0.2, now=1.0)
