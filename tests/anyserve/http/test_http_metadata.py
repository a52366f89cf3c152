"""When a request has to be answered, as its headers say it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio

from anyserve.errors import InvalidArgument
from anyserve.http.metadata import deadline
from anyserve.http.request import HttpRequest


def left(**headers: str) -> float:
    """Seconds from now on."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return deadline(HttpRequest("POST", "/", headers=named)) - trio.current_time()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, math.inf),
        ({"grpc_timeout": "2H"}, 7200),
        ({"grpc_timeout": "100m"}, 0.1),
        ({"grpc_timeout": "0n"}, 0),
        ({"x_request_timeout": "30"}, 30),
        ({"x_request_timeout": "30."}, 30),
        ({"x_request_timeout": ".5"}, 0.5),
        ({"x_request_timeout": "0.000000001"}, 1e-9),
        ({"x_request_timeout": "99999999.999999999"}, 1e8),
        ({"grpc_timeout": "5S", "x_request_timeout": "4"}, 4),
        ({"grpc_timeout": "3S", "x_request_timeout": "4"}, 3),
    ],
)
async def test_a_deadline_comes_by_either_header_and_the_earlier_counts(
    headers: dict[str, str], seconds: float, mock_clock: Any
) -> None:
    assert left(**headers) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "5", "S", "-1S", "1.5S", "123456789S", "5s ", "1S,2S"])
async def test_a_grpc_timeout_that_is_none_is_told(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^header malformed grpc-timeout"):
        left(grpc_timeout=value, x_request_timeout="1")


@pytest.mark.parametrize(
    "value",
    [
        *("", ".", "0", "0.0", "-1", "+1", " 1", "1,2", "1e3", "1_0", "123456789", "1.0123456789"),
        *("\u0663", "5S", "soon", "nan", "inf"),
    ],
)
async def test_an_x_request_timeout_that_is_none_is_told(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^header X-Request-Timeout .* is no number"):
        left(x_request_timeout=value, grpc_timeout="1S")
