"""The rule of supervision, pure: what to do when a child ended, in OTP's words and meaning."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypeAlias

import attrs
from attrs import validators

# Past this many restarts in a row the delay has long reached any maximum; without a cap the
# power would overflow a float.
STREAK_LIMIT = 64


class Strategy(enum.Enum):
    """Which children restart when one of them has to."""

    ONE_FOR_ONE = "one_for_one"
    """Only that child."""
    ONE_FOR_ALL = "one_for_all"
    """All of them."""
    REST_FOR_ONE = "rest_for_one"
    """That child and those that start after it."""


class Restart(enum.Enum):
    """When a child that ended is to start again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Only when it failed."""
    TEMPORARY = "temporary"
    """Never, not even with its siblings; once ended it is forgotten."""


@attrs.frozen
class Backoff:
    """How long to wait before a restart: `initial` seconds, times `factor` for each one in a row.

    A child's restarts are in a row until it has stayed up for the policy's period.
    """

    initial: float = attrs.field(default=0.1, validator=validators.ge(0))
    factor: float = attrs.field(
        default=2.0, validator=validators.and_(validators.ge(1), validators.le(1000))
    )
    maximum: float = attrs.field(default=30.0, validator=validators.ge(0))
    jitter: float = attrs.field(
        default=0.1, validator=validators.and_(validators.ge(0), validators.le(1))
    )
    """The delay is off by up to this part of it, either way."""

    def delay(self, streak: int, chance: float) -> float:
        """Seconds to wait before the restart that `streak` others in a row came before.

        `chance` in [0, 1) picks the point within the jitter; 0.5 is its middle.
        """
        plain = min(self.maximum, self.initial * self.factor ** min(streak, STREAK_LIMIT))
        return plain * (1 + self.jitter * (2 * chance - 1))


@attrs.frozen
class Policy:
    """How a supervisor's children restart."""

    strategy: Strategy = Strategy.ONE_FOR_ONE
    max_restarts: int = attrs.field(default=5, validator=validators.ge(0))
    """One restart more than this within `period` and the supervisor gives up."""
    period: float = attrs.field(default=60.0, validator=validators.gt(0))
    """Seconds."""
    backoff: Backoff = attrs.field(factory=Backoff)


@attrs.frozen
class Sibling:
    """A child as the rule sees it."""

    name: str
    restart: Restart


@attrs.frozen
class Ended:
    """How a child ended."""

    name: str
    failed: bool
    """With an error; False: it returned."""
    uptime: float
    """Seconds from its readiness to its end; 0 where it never got ready."""
    streak: int
    """Its restarts in a row so far."""


@attrs.frozen
class Leave:
    """Do nothing; the child stays down."""


@attrs.frozen
class RestartChildren:
    """Stop some, wait, start some."""

    stop: tuple[str, ...]
    """Children to stop, in this order. Those that are not in `start` are then forgotten."""
    start: tuple[str, ...]
    """Children to start, in this order, each ready before the next."""
    delay: float
    """Seconds to wait between the two."""
    streak: int
    """The restarts in a row of the child that ended, this one among them."""
    recent: tuple[float, ...]
    """The times of the restarts that still count, this one among them."""


@attrs.frozen
class Escalate:
    """Too many restarts: stop all children and fail."""


Decision: TypeAlias = Leave | RestartChildren | Escalate


def decide(
    policy: Policy,
    siblings: Sequence[Sibling],
    ended: Ended,
    recent: Sequence[float],
    now: float,
    chance: float,
) -> Decision:
    """What a supervisor does about the child that `ended`.

    `siblings` are all children in start order, the ended one among them; `recent` the times of
    the restarts so far; `chance` in [0, 1) is the jitter's random number.
    """
    position = next(i for i, sibling in enumerate(siblings) if sibling.name == ended.name)
    restart = siblings[position].restart
    if restart is Restart.TEMPORARY or (restart is Restart.TRANSIENT and not ended.failed):
        return Leave()

    counted = (*(time for time in recent if now - time <= policy.period), now)
    if len(counted) > policy.max_restarts:
        return Escalate()

    streak = 0 if ended.uptime >= policy.period else ended.streak
    affected = _affected(policy.strategy, siblings, position)
    return RestartChildren(
        stop=tuple(s.name for s in reversed(affected) if s.name != ended.name),
        start=tuple(s.name for s in affected if s.restart is not Restart.TEMPORARY),
        delay=policy.backoff.delay(streak, chance),
        streak=streak + 1,
        recent=counted,
    )


def _affected(strategy: Strategy, siblings: Sequence[Sibling], position: int) -> Sequence[Sibling]:
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return siblings[position : position + 1]
        case Strategy.REST_FOR_ONE:
            return siblings[position:]
        case Strategy.ONE_FOR_ALL:
            return siblings
