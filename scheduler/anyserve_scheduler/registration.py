"""What a replica tells the registry and is told: registration, grant and reports, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import attrs

from anyserve.load import Load
from anyserve_scheduler.fleet import OfferView


@attrs.frozen
class LeaseTerms:
    """How long a replica may be silent; in seconds."""

    lease: float = 10.0
    """Silent for as long, it is out."""
    interval: float = 2.0
    """How often it reports."""
    grace: float = 0.5
    """Silent for an interval and this, it is suspect."""

    def __attrs_post_init__(self) -> None:
        if self.interval <= 0 or self.grace < 0 or self.suspicion >= self.lease:
            raise ValueError(f"a lease is longer than one interval and its grace: {self}")

    @property
    def suspicion(self) -> float:
        """The silence that makes a replica suspect."""
        return self.interval + self.grace


@attrs.frozen
class Registration:
    """All that a replica says of itself when its link is made, the first time or again."""

    id: str
    """Its own in the fleet; stays when the replica starts again."""
    instance: bytes
    """Random, of the replica's process."""
    address: str
    """Where it serves inference."""
    offers: Sequence[OfferView]
    """All of them."""
    epoch: int = 0
    """The one to resume with; 0 when this process has been granted none."""
    draining: bool = False


@attrs.frozen
class Grant:
    """The answer to a registration."""

    epoch: int
    resumed: bool
    """The lease went on: the epoch is the one that the replica had."""
    terms: LeaseTerms


@attrs.frozen
class Report:
    """What is different since the report before it; empty, it says that the replica lives."""

    sequence: int
    """1 for the first after a registration, then one more each."""
    loads: Mapping[str, Load] = attrs.field(factory=dict)
    """Of known offers whose load is different, by the capability's name."""
    offers: Sequence[OfferView] = ()
    """Those that appeared or are different."""
    removed: Sequence[str] = ()
    """Names of those that vanished."""
    draining: bool = False
    full: bool = False
    """`offers` are all there are, whatever was known before."""


class Heard(enum.Enum):
    """What the registry made of a report."""

    APPLIED = enum.auto()
    IGNORED = enum.auto()
    """It came twice, or after a later one; it says nothing, not even that the replica lives."""
    INCOMPLETE = enum.auto()
    """One before it is missing. The replica lives; its next report has to be full."""
