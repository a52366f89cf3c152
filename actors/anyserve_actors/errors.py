"""What goes wrong between actors, and how an error is told in one line."""

from __future__ import annotations

LINE_LIMIT = 300
"""Characters of an error's one-line description."""


class ActorError(Exception):
    """Base of the errors that this package raises."""


class ActorGone(ActorError):
    """The actor ended, or was never started, and will not answer."""


class MailboxFull(ActorError):
    """The mailbox has no room and the sender did not want to wait for it."""


class ChildExists(ActorError):
    """The supervisor already has a child of that name."""


class NoSuchChild(ActorError):
    """The supervisor has no child of that name."""


class RestartIntensityExceeded(ActorError):
    """A supervisor's children failed too often; `__cause__` is the last child's last error."""

    def __init__(self, message: str, child: str) -> None:
        super().__init__(message)
        self.child = child


def describe(error: BaseException, limit: int = LINE_LIMIT) -> str:
    """Type and message of `error` on one line; of a group, its members', sharing the line."""
    if isinstance(error, BaseExceptionGroup):
        share = limit // len(error.exceptions)
        text = "; ".join(describe(member, share) for member in error.exceptions)
    else:
        message = " ".join(str(error).split())
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= limit else f"{text[: max(limit - 1, 0)]}…"


def sole(error: BaseException) -> BaseException:
    """The member of a group of one, or `error` itself.

    Takes off the one group that a nursery put around what its body raised; a group that user
    code raised on purpose is inside it and stays. Raise the result outside the `except` block,
    so that its own `__cause__` and `__context__` stay too.
    """
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return error.exceptions[0]
    return error
