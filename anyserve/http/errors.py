"""Our errors as HTTP statuses."""

from __future__ import annotations

from anyserve.errors import AnyServeError, Status

_HTTP = {
    Status.CANCELLED: 499,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 400,
    Status.ABORTED: 409,
    Status.OUT_OF_RANGE: 400,
    Status.UNIMPLEMENTED: 501,
    Status.UNAVAILABLE: 503,
    Status.UNAUTHENTICATED: 401,
}


def http_status(error: AnyServeError) -> int:
    """The HTTP status of an error, as gRPC's gateways have it; 500 for a fault on this side."""
    return _HTTP.get(error.status, 500)
