"""The one tree of errors, each with the gRPC status that a client sees.

Raise the class where the fact is known; the ingress translates it to the wire in one place.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeVar


class Status(enum.IntEnum):
    """gRPC status codes, with the numbers that the gRPC protocol gives them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class AnyServeError(Exception):
    """Base of every error that AnyServe raises on purpose; `message` is safe to show a client."""

    status: ClassVar[Status] = Status.UNKNOWN
    elsewhere = False
    """Whether nothing was begun here, and another replica may be able to do it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


Error = TypeVar("Error", bound=AnyServeError)


class Cancelled(AnyServeError):
    """The caller went away or cancelled the request."""

    status = Status.CANCELLED


class Unknown(AnyServeError):
    """A failure that says nothing about its kind."""

    status = Status.UNKNOWN


class InvalidArgument(AnyServeError):
    """The request is wrong whatever the state of the server; the message names the field."""

    status = Status.INVALID_ARGUMENT


class DeadlineExceeded(AnyServeError):
    """The request's deadline passed before it was answered."""

    status = Status.DEADLINE_EXCEEDED


class NotFound(AnyServeError):
    """What the request names is not here; the message says what is."""

    status = Status.NOT_FOUND


class AlreadyExists(AnyServeError):
    """The name is taken."""

    status = Status.ALREADY_EXISTS


class PermissionDenied(AnyServeError):
    """The caller may not do this."""

    status = Status.PERMISSION_DENIED


class ResourceExhausted(AnyServeError):
    """A bound was met: a full queue, a message too large, a budget too small to wait with."""

    status = Status.RESOURCE_EXHAUSTED


class FailedPrecondition(AnyServeError):
    """The system is not in the state that the request needs."""

    status = Status.FAILED_PRECONDITION


class Aborted(AnyServeError):
    """The operation was given up for a conflict with another one."""

    status = Status.ABORTED


class OutOfRange(AnyServeError):
    """A position is past the end of what it points into."""

    status = Status.OUT_OF_RANGE


class Unimplemented(AnyServeError):
    """This server does not do that."""

    status = Status.UNIMPLEMENTED


class Internal(AnyServeError):
    """A fault on this side: a handler's exception, a broken invariant."""

    status = Status.INTERNAL


class Unavailable(AnyServeError):
    """Not now: no worker is ready, the worker died, the replica is draining. May be retried."""

    status = Status.UNAVAILABLE


class DataLoss(AnyServeError):
    """Data was lost or corrupted beyond repair."""

    status = Status.DATA_LOSS


class Unauthenticated(AnyServeError):
    """The caller did not prove who it is."""

    status = Status.UNAUTHENTICATED


def elsewhere(error: Error) -> Error:
    """`error`, for a request of which nothing was begun, and that another replica may serve."""
    error.elsewhere = True
    return error


def innermost(error: BaseException) -> BaseException:
    """The exception inside the groups that nurseries have put around it alone.

    A group of several comes back as it is.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def first_of(error: BaseException) -> BaseException:
    """The exception inside the groups around it; of several, which have one cause, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


_BY_STATUS: dict[Status, type[AnyServeError]] = {
    error.status: error for error in AnyServeError.__subclasses__()
}


def from_status(status: int, message: str) -> AnyServeError:
    """The error of the tree for a gRPC `status` number; a number gRPC has not is `Unknown`."""
    try:
        error = _BY_STATUS[Status(status)]
    except (KeyError, ValueError):
        error = Unknown
    return error(message)
