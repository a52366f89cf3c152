"""At most one delegation of a request, ever: a permit that exists once and is consumed."""

from __future__ import annotations

import attrs

from anyserve.capability import Capability
from anyserve.errors import FailedPrecondition


@attrs.frozen
class Handback:
    """What a replica says of a request that it does not serve."""

    replica: str
    """Its id."""
    need: Capability
    """The least that would do."""
    reason: str


@attrs.define(eq=False)
class Permit:
    """The right of one request to be handed back. There is one for it, made when it arrives.

    A request that a replica handed over, and that so arrives delegated, comes with a spent one.
    """

    spent: Handback | None = None
    """The hand-back that has consumed it."""

    @property
    def delegations(self) -> int:
        """How often the request was delegated: 0 or 1."""
        return 0 if self.spent is None else 1

    def consume(self, handback: Handback) -> None:
        """Let the request go on to another replica.

        Raises `FailedPrecondition`, with the reasons of both replicas, where it has done so before.
        """
        first = self.spent
        if first is not None:
            raise FailedPrecondition(
                f"handed back twice, and a request is delegated once:"
                f" {first.replica}: {first.reason}; then {handback.replica}: {handback.reason}"
            )
        self.spent = handback
