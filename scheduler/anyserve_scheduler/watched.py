"""A registry whose changes are told to those that follow it, as soon as they have happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs

from anyserve_scheduler.fleet import Change, Fleet
from anyserve_scheduler.registration import Grant, Heard, Registration, Report
from anyserve_scheduler.registry import Registry

Follower: TypeAlias = Callable[[Sequence[Change] | Fleet], None]
"""Called with the changes since its last call, oldest first, or with the whole fleet instead.

It must not wait, fail, or change the registry.
"""


@attrs.define(eq=False)
class WatchedRegistry:
    """The `Registry` that it is given, and those who follow it."""

    _registry: Registry
    _followers: list[Follower] = attrs.field(init=False, factory=list)
    _told: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._told = self._registry.fleet().version

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of all changes from now on."""
        self._followers.append(follower)

    def register(self, registration: Registration, now: float) -> Grant:
        """As `Registry` says."""
        try:
            return self._registry.register(registration, now)
        finally:
            self._tell()

    def report(self, id: str, epoch: int, report: Report, now: float) -> Heard:
        """As `Registry` says."""
        try:
            return self._registry.report(id, epoch, report, now)
        finally:
            self._tell()

    def suspect(self, id: str, epoch: int) -> None:
        """As `Registry` says."""
        self._registry.suspect(id, epoch)
        self._tell()

    def release(self, id: str, epoch: int) -> bool:
        """As `Registry` says."""
        released = self._registry.release(id, epoch)
        self._tell()
        return released

    def expire(self, now: float) -> Sequence[Change]:
        """As `Registry` says."""
        changes = self._registry.expire(now)
        self._tell()
        return changes

    def due(self) -> float:
        """As `Registry` says."""
        return self._registry.due()

    def fleet(self) -> Fleet:
        """As `Registry` says."""
        return self._registry.fleet()

    def since(self, version: int) -> Sequence[Change] | Fleet:
        """As `Registry` says."""
        return self._registry.since(version)

    def _tell(self) -> None:
        """Let followers know, also of what an operation that failed has changed before."""
        version = self._registry.fleet().version
        if version != self._told:
            news = self._registry.since(self._told)
            self._told = version
            for follower in self._followers:
                follower(news)
