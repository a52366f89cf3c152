"""The one error that engines add to the tree."""

from __future__ import annotations

from anyserve.errors import FailedPrecondition


class CannotLoad(FailedPrecondition):
    """An engine can't load here; the message says in one line what to install or to change."""
