"""One place for an actor: how it is started, its mailbox, and its lives one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
import trio
from attrs import validators

from anyserve_actors.actor import Actor, ActorLogger, Context
from anyserve_actors.errors import ActorError, ActorGone, describe, sole
from anyserve_actors.mailbox import Address, Mailbox
from anyserve_actors.restarts import Restart
from anyserve_actors.tree import Node, State

M = TypeVar("M")


@attrs.frozen(eq=False)
class ChildSpec(Generic[M]):
    """How to start an actor, and what its supervisor does about its end."""

    name: str = attrs.field(validator=validators.matches_re(r"[^/]+"))
    """Unique among its siblings."""
    factory: Callable[[], Actor[M]]
    """Makes a new actor for each life."""
    restart: Restart = Restart.PERMANENT
    capacity: int = attrs.field(default=64, validator=validators.ge(0))
    """Messages that may wait; 0 hands each over directly."""
    shutdown_timeout: float = attrs.field(default=5.0, validator=validators.gt(0))
    """Seconds that `run` has to end once cancelled, and then `aclose` to release what it holds.

    `math.inf` for a supervisor: it ends when its children have, and they have bounds of their own.
    """


@attrs.define(eq=False)
class Life:
    """One run of an actor, from its factory to the end of its `aclose`."""

    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    actor: Actor[Any] | None = None
    ready_at: float | None = None
    stopping: bool = False
    """Someone ended it on purpose."""
    left: trio.Event = attrs.Factory(trio.Event)
    """Set when `run` has ended."""
    ended: trio.Event = attrs.Factory(trio.Event)
    """Set when `aclose` has ended too."""

    def cancel(self) -> None:
        """Have the life end; it then counts as stopped."""
        self.stopping = True
        self.scope.cancel()


@attrs.define(eq=False)
class Child(Generic[M]):
    """An actor's place in the tree. It stays while lives come and go."""

    spec: ChildSpec[M]
    mailbox: Mailbox[M] = attrs.field(init=False)
    life: Life | None = None
    """The present one; None between lives."""
    state: State = State.STARTING
    since: float = 0.0
    """When the present life began, or the last one ended."""
    kind: str = ""
    restarts: int = 0
    streak: int = 0
    """Restarts in a row, for the back-off."""
    last_error: str | None = None
    removed: bool = False
    """Its supervisor forgets it when its life has ended."""

    def __attrs_post_init__(self) -> None:
        self.mailbox = Mailbox(self.spec.name, self.spec.capacity)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> Address[M]:
        return Address(self.mailbox)

    def begin(self, now: float) -> Life:
        """A new life, for `live` to run."""
        life = self.life = Life()
        self.since = now
        self.state = State.STARTING
        self.mailbox.reopen()
        return life

    async def live(
        self,
        life: Life,
        parent: str,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run `life` to its end; reports to `task_status` when the actor is ready.

        Until it is ready, cancelling the caller ends it; from then on only `Life.cancel` does, so
        that the supervisor keeps the order of ends. Raises what the actor failed with, also where
        the factory did; `ActorError` where it returned before it was ready, and `ActorGone` where
        it was stopped before.
        """
        path = join(parent, self.name)

        def started() -> None:
            # A start whose caller was just cancelled must stay cancelled.
            if trio.current_effective_deadline() > -float("inf"):
                life.scope.shield = True
            life.ready_at = trio.current_time()
            self.state = State.RUNNING
            task_status.started()

        error: BaseException | None = None
        try:
            with life.scope:
                actor = life.actor = self.spec.factory()
                self.kind = type(actor).__name__
                log = ActorLogger(logging.getLogger(type(actor).__module__), path)
                async with trio.open_nursery() as nursery:
                    await actor.run(Context(self.name, path, self.mailbox, nursery, log, started))
            if life.ready_at is None:
                if life.stopping:
                    raise ActorGone(f"actor {self.name!r} was stopped before it was ready")
                raise ActorError(f"actor {self.name!r} returned before it was ready")
        except BaseException as caught:
            # Raised again below, after the cleanup and outside of this block (see `sole`).
            error = sole(caught)
        life.left.set()
        try:
            if life.actor is not None:
                await self._close(life.actor, path)
        finally:
            self._end(life, error)
        if error is not None:
            raise error

    def _end(self, life: Life, error: BaseException | None) -> None:
        self.mailbox.fail_questions()
        if isinstance(error, Exception) and not life.stopping:
            self.state = State.FAILED
            self.last_error = describe(error)
        else:
            self.state = State.STOPPED
        self.since = trio.current_time()
        self.life = None
        life.ended.set()

    async def _close(self, actor: Actor[M], path: str) -> None:
        """The actor's own cleanup, shielded and bounded; a failure of it is logged."""
        log = ActorLogger(logging.getLogger(type(actor).__module__), path)
        with trio.move_on_after(self.spec.shutdown_timeout, shield=True) as limit:
            try:
                await actor.aclose()
            except Exception:
                log.exception("cleanup failed")
        if limit.cancelled_caught:
            log.error("cleanup was cut off after %g s", self.spec.shutdown_timeout)

    def node(self, parent: str, now: float) -> Node:
        """This actor and all under it as they are at `now`."""
        path = join(parent, self.name)
        actor = self.life.actor if self.life is not None else None
        return Node(
            name=self.name,
            path=path,
            kind=self.kind,
            state=self.state,
            age=now - self.since,
            mailbox_depth=self.mailbox.depth,
            mailbox_capacity=self.mailbox.capacity,
            restarts=self.restarts,
            last_error=self.last_error,
            details={} if actor is None else dict(actor.details()),
            children=() if actor is None else actor.children(path, now),
        )


def join(parent: str, name: str) -> str:
    """The path of `name` under `parent`, which is empty for the root."""
    return f"{parent}/{name}" if parent else name
