"""Errors in the form of OpenAI's API."""

from __future__ import annotations

import re

import msgspec

from anyserve.errors import AnyServeError, Status
from anyserve.http.errors import http_status

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUSES = {
    # What a model can't do is no fault of the server's: asked again, it would be the same.
    Status.UNIMPLEMENTED: 400,
    # A request that two replicas could not serve may be served later.
    Status.FAILED_PRECONDITION: 503,
}
_PARAMETER = re.compile(r"([a-z_]{1,40})(?:\[\d+\])?[:.]")


class Refused(Exception):
    """A request that is wrong, or names what is not here."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        """param: the field of the request that is to blame. code: for programs to tell it by."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code


def error_body(status: int, message: str) -> bytes:
    """The body of an answer with that HTTP status; see `ErrorBody`."""
    return body_of(Refused(message, status=status))


def body_of(error: Refused) -> bytes:
    """The body that tells `error`: `{"error": {"message", "type", "param", "code"}}`."""
    kind = _TYPES.get(
        error.status, "invalid_request_error" if error.status < 500 else "server_error"
    )
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def refused(error: AnyServeError) -> Refused:
    """What a request that ended with `error` is answered with.

    Messages begin with the field that is wrong, if one is.
    """
    status = _STATUSES.get(error.status, http_status(error))
    found = _PARAMETER.match(error.message) if status < 500 else None
    return Refused(error.message, param=found[1] if found else None, status=status)
