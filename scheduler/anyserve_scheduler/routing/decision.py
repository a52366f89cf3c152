"""What a routing decision is asked with, and what it answers."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, InvalidArgument, Status, from_status

SESSION_LIMIT = 256
"""Longest session key in characters."""


def _check_session(_: Hints, __: attrs.Attribute[str | None], session: str | None) -> None:
    if session is not None and len(session) > SESSION_LIMIT:
        raise InvalidArgument(
            f"the session key is {len(session)} characters long, over {SESSION_LIMIT}"
        )


@attrs.frozen
class Hints:
    """What is known of one request beside its need."""

    budget: float = math.inf
    """Seconds until its deadline."""
    session: str | None = attrs.field(default=None, validator=_check_session)
    """Requests of one session go to one replica where they can."""
    blocks: tuple[bytes, ...] = ()
    """Hashes of the prompt's blocks (`prefix.block_hashes`), the first block first."""
    excluded: Mapping[str, str] = MappingProxyType({})
    """Ids of replicas that it must not go to, each with the reason."""
    delegations: int = 0
    """How often a replica has handed it back: 0 or 1."""


class Why(enum.StrEnum):
    """A reason for a decision, in words."""

    SESSION = "its session is there"
    PREFIX = "the beginning of its prompt is cached there"
    LEAST_WAIT = "the least expected wait"
    TWO_CHOICES = "the better of two at random, since the reported loads are old"
    DRAWN_IN_VAIN = "the least expected wait, since neither of two at random can take it"
    SPILLED = "none that is less powerful can take it in time"
    SUSPECT = "no replica that was heard of lately can take it in time"


@attrs.frozen
class Decision:
    """Where a request goes."""

    replica: str
    epoch: int
    """Of the replica's registration."""
    address: str
    capability: Capability
    """The offer that the need was matched to."""
    expected_wait: float
    """Seconds until it starts there, as far as is known."""
    reasons: tuple[Why, ...]
    """What decided, then what led there."""
    prefill: Decision | None = None
    """Where its prompt goes, if a pair serves it; this then is the decode half, and
    `expected_wait` that of the later one."""


@attrs.frozen
class NoRoute:
    """Why a request goes nowhere.

    NOT_FOUND: nothing in the fleet satisfies the need. UNAVAILABLE: what does is excluded, draining
    or has no worker. RESOURCE_EXHAUSTED: the queues are full, or the deadline is too near.
    """

    status: Status
    message: str
    """Safe to show a client."""
    loadable: Capability | None = None
    """The least powerful capability that some replica could load to serve it."""
    promising: bool = False
    """Nothing else stands in the way, and nothing says that loading it fails: it is worth waiting
    for."""

    def error(self) -> AnyServeError:
        """The same as an error to raise."""
        return from_status(self.status, self.message)
