"""What of an HTTP request's headers goes along with it, as metadata does with a gRPC call."""

from __future__ import annotations

import math
from collections.abc import Mapping

import trio

from anyserve.capability import NEED_METADATA_PREFIX
from anyserve.errors import InvalidArgument
from anyserve.http.request import HttpRequest
from anyserve.transport.headers import TIMEOUT, decode_timeout

_PASSED = ("x-", "traceparent", "tracestate", NEED_METADATA_PREFIX)
_SUFFIX_OF_BYTES = "-bin"


def passed(request: HttpRequest) -> Mapping[str, str]:
    """Those that a handler may see: needs, trace, and whatever begins with `x-`."""
    return {
        name: value
        for name, value in request.headers.items()
        if name.startswith(_PASSED) and not name.endswith(_SUFFIX_OF_BYTES)
    }


def deadline(request: HttpRequest) -> float:
    """On Trio's clock, by the header `grpc-timeout` (`5S`, `100m`); `inf` without one.

    Raises `InvalidArgument`.
    """
    timeout = request.headers.get(TIMEOUT)
    if timeout is None:
        return math.inf
    try:
        return trio.current_time() + decode_timeout(timeout)
    except InvalidArgument as error:
        raise InvalidArgument(f"header {error.message}") from None
