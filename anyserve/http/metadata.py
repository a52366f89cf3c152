"""What of an HTTP request's headers goes along with it, as metadata does with a gRPC call."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from anyserve.burst import now
from anyserve.capability import NEED_METADATA_PREFIX
from anyserve.errors import InvalidArgument
from anyserve.http.request import HttpRequest
from anyserve.transport.headers import TIMEOUT, decode_timeout

_PASSED = ("x-", "traceparent", "tracestate", NEED_METADATA_PREFIX)
_SUFFIX_OF_BYTES = "-bin"
_SECONDS = "x-request-timeout"
_NUMBER = re.compile(r"[0-9]{1,8}(\.[0-9]{0,9})?|\.[0-9]{1,9}")


def passed(request: HttpRequest) -> Mapping[str, str]:
    """Those that a handler may see: needs, trace, and whatever begins with `x-`."""
    return {
        name: value
        for name, value in request.headers.items()
        if name.startswith(_PASSED) and not name.endswith(_SUFFIX_OF_BYTES)
    }


def deadline(request: HttpRequest) -> float:
    """When a request has to be answered, on Trio's clock: `inf` where it does not say.

    It says so by `grpc-timeout` (`5S`, `100m`), by `X-Request-Timeout` (seconds: `5`, `0.1`), or by
    both, of which the earlier counts. Raises `InvalidArgument` for a value that is neither.
    """
    headers = request.headers
    if TIMEOUT not in headers and _SECONDS not in headers:
        return math.inf
    left = math.inf
    if (value := headers.get(TIMEOUT)) is not None:
        try:
            left = decode_timeout(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"header {error.message}") from None
    if (value := headers.get(_SECONDS)) is not None:
        left = min(left, _seconds(value))
    return now() + left


def _seconds(value: str) -> float:
    seconds = float(value) if _NUMBER.fullmatch(value) else 0.0
    if seconds == 0.0:
        raise InvalidArgument(
            f"header X-Request-Timeout {value[:40]!r} is no number of seconds over 0"
        )
    return seconds
