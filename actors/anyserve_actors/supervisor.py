"""A supervisor: an actor that starts other actors, restarts them by policy and ends them in order.

It has no loop of its own. Each child's task reports its end, the pure rule of `restarts` decides,
and a restart that takes time is a job: a task that stops, waits and starts what the rule said.
"""

from __future__ import annotations

import contextvars
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Never, TypeVar

import attrs
import trio

from anyserve_actors.actor import Actor, Context
from anyserve_actors.child import Child, ChildSpec, Life, join
from anyserve_actors.errors import (
    ActorError,
    ActorGone,
    ChildExists,
    NoSuchChild,
    RestartIntensityExceeded,
    describe,
)
from anyserve_actors.mailbox import Address
from anyserve_actors.restarts import (
    Ended,
    Escalate,
    Leave,
    Policy,
    Restart,
    RestartChildren,
    Sibling,
    decide,
)
from anyserve_actors.tree import Detail, Node, State

M = TypeVar("M")


@attrs.define(eq=False)
class Job:
    """A restart under way; what another job takes over is taken out of its lists."""

    stop: list[str]
    """Children that it has still to stop, in order."""
    delay: float
    """Seconds between the stops and the starts."""
    start: list[str]
    """Children that it has still to start, in order."""
    done: trio.Event = attrs.Factory(trio.Event)
    error: Exception | None = None
    """Why it did not start them all."""


class Supervisor(Actor[Never]):
    """Starts its children in order, each ready before the next; ends them in reverse order.

    A child that fails before the supervisor is ready fails the supervisor: what never worked is
    not tried again. After that `policy` says what happens. When restarts exceed its intensity the
    supervisor ends its children and raises `RestartIntensityExceeded`, which its own supervisor
    sees as a failed child.

    Addresses of children stay valid across the children's restarts. They do not outlive the
    supervisor: a new one has new children.
    """

    def __init__(
        self,
        children: Iterable[ChildSpec[Any]] = (),
        policy: Policy | None = None,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy if policy is not None else Policy()
        self._jitter = jitter
        self._children: dict[str, Child[Any]] = {}  # in start order
        for spec in children:
            self._add(spec)
        self._context: Context[Never]
        self._variables: contextvars.Context
        self._job_nursery: trio.Nursery
        self._open = False  # takes new work
        self._ready = False
        self._starting = trio.CancelScope()
        self._failure: Exception | None = None
        self._failed = trio.Event()
        self._recent: tuple[float, ...] = ()  # times of the restarts that count
        self._jobs: set[Job] = set()

    def address(self, spec: ChildSpec[M]) -> Address[M]:
        """The address of the child of `spec`, valid also before it has started."""
        return self._find(spec.name).address

    async def start_child(self, spec: ChildSpec[M]) -> Address[M]:
        """Start one more child after the others; wait until it is ready.

        Bounded by the caller's scope; cancelled, the child is ended and forgotten. Raises what the
        child failed with before it was ready, `ChildExists`, and `ActorGone` where the supervisor
        does not run.
        """
        self._check_open()
        child = self._add(spec)
        try:
            await self._launch(child, child.begin(trio.current_time()))
        except BaseException:
            self._discard(child)
            raise
        return child.address

    async def stop_child(self, name: str) -> None:
        """End a child and forget it, with its address; wait until it has ended.

        Bounded by the child's shutdown timeout unless it ignores its cancellation; cancelled, the
        child ends all the same. Raises `NoSuchChild`.
        """
        child = self._find(name)
        self._discard(child)
        await self._stop(child)

    async def restart_child(self, name: str) -> None:
        """End a child if it runs, start it again at once, and wait until it is ready.

        Does not count towards the restart intensity; messages wait in the mailbox. Cancelled, the
        restart goes on. Raises what the child failed with, after which the policy goes on as after
        any failure; `NoSuchChild`; `ActorGone` where the supervisor does not run or ends
        meanwhile; and `ActorError` where the child's removal or another restart came first.
        """
        self._check_open()
        self._find(name)
        job = Job(stop=[name], delay=0.0, start=[name])
        self._begin(job, [name])
        await job.done.wait()
        if job.error is not None:
            raise job.error

    async def run(self, context: Context[Never]) -> None:
        """Start the children, then stay until cancelled or until the policy gives up."""
        self._context = context
        self._variables = contextvars.copy_context()
        for child in self._children.values():
            child.since = trio.current_time()
        try:
            async with trio.open_nursery() as self._job_nursery:
                self._open = True
                try:
                    await self._start_all()
                    if self._failure is None:
                        self._ready = True
                        context.started()
                    await self._failed.wait()
                finally:
                    self._open = False
                self._job_nursery.cancel_scope.cancel()
        finally:
            # Each wait in it is bounded by the child's shutdown timeout.
            with trio.CancelScope(shield=True):
                await self._stop_all()
        assert self._failure is not None
        raise self._failure

    def details(self) -> Mapping[str, Detail]:
        return {"strategy": self.policy.strategy.value}

    def children(self, path: str, now: float) -> tuple[Node, ...]:
        return tuple(child.node(path, now) for child in self._children.values())

    # Starting and stopping

    async def _start_all(self) -> None:
        with self._starting:
            for child in tuple(self._children.values()):
                if child.removed:
                    continue
                life = child.begin(trio.current_time())
                try:
                    await self._launch(child, life)
                except Exception as error:
                    if not life.stopping:
                        self._fail(error)
                        return

    async def _launch(self, child: Child[Any], life: Life) -> None:
        """Run `life` in a task and wait until it is ready; raises what it failed with before."""
        path = self._context.path
        name = f"actor {join(path, child.name)}"
        await self._context.nursery.start(self._keep, child, life, path, name=name)

    async def _keep(
        self, child: Child[Any], life: Life, path: str, *, task_status: trio.TaskStatus[None]
    ) -> None:
        """The task of one life of a child; handles its end once the child has been ready."""
        failure: Exception | None = None
        try:
            await child.live(life, path, task_status)
        except Exception as error:
            if life.ready_at is None:
                raise
            failure = error
        finally:
            if child.removed:
                self._forget(child)
        if not life.stopping:
            assert life.ready_at is not None
            self._ended(child, failure, trio.current_time() - life.ready_at)
        elif failure is not None:
            self._context.log.error(
                "child %s failed while it stopped", child.name, exc_info=failure
            )

    async def _stop(self, child: Child[Any], *, give_up: bool = False) -> None:
        """End a child's life and wait; with `give_up` no longer than its shutdown timeout."""
        life = child.life
        if life is None:
            return
        child.state = State.STOPPING
        life.cancel()
        with trio.move_on_after(child.spec.shutdown_timeout):
            await life.left.wait()
        if not life.left.is_set():
            self._context.log.error(
                "child %s has not ended %g s after it was cancelled",
                child.name,
                child.spec.shutdown_timeout,
            )
            if give_up:
                return
        await life.ended.wait()

    async def _stop_all(self) -> None:
        for child in reversed(tuple(self._children.values())):
            await self._stop(child, give_up=True)
            child.mailbox.close()

    # What follows when a child has ended

    def _ended(self, child: Child[Any], error: Exception | None, uptime: float) -> None:
        """A child ended by itself, or could not start again: begin what the rule decides."""
        if not self._open or child.removed:
            return
        if any(child.name in job.start for job in self._jobs):
            child.state = State.BACKING_OFF  # a restart of its group was about to stop it
            return
        decision = decide(
            self.policy,
            [Sibling(name, other.spec.restart) for name, other in self._children.items()],
            Ended(child.name, error is not None, uptime, child.streak),
            self._recent,
            trio.current_time(),
            self._jitter(),
        )
        how = "normally" if error is None else f"with {describe(error)}"
        log = self._context.log
        match decision:
            case Leave():
                level = logging.INFO if error is None else logging.ERROR
                log.log(level, "child %s ended %s", child.name, how, exc_info=error)
                if child.spec.restart is Restart.TEMPORARY:
                    self._forget(child)
                else:
                    child.mailbox.close()
            case _ if not self._ready:
                self._fail(error or ActorError(f"child {child.name!r} ended during the start"))
            case Escalate():
                self._fail(self._too_many(child.name, how, error))
            case RestartChildren(stop, start, delay, streak, recent):
                log.error(
                    "child %s ended %s; starting again in %.3g s: %s",
                    child.name,
                    how,
                    delay,
                    ", ".join(start),
                    exc_info=error,
                )
                self._recent = recent
                child.streak = streak
                child.state = State.BACKING_OFF
                self._begin(Job(list(stop), delay, list(start)), {*stop, *start})

    def _too_many(self, name: str, how: str, error: Exception | None) -> RestartIntensityExceeded:
        policy = self.policy
        limit = f"{policy.max_restarts} restarts in {policy.period:g} s"
        failure = RestartIntensityExceeded(f"child {name!r} ended {how}, after {limit}", name)
        failure.__cause__ = error
        return failure

    def _fail(self, error: Exception) -> None:
        """Have `run` end the children and raise `error`."""
        if self._failure is None:
            self._failure = error
            self._failed.set()
            self._starting.cancel()

    # Restarts, which take time

    def _begin(self, job: Job, affected: Collection[str]) -> None:
        """Start `job`, which takes over from the other jobs what they meant for `affected`."""
        self._withdraw(affected)
        self._jobs.add(job)
        # With the supervisor's own context variables, not those of the child that ended.
        self._variables.run(self._job_nursery.start_soon, self._carry_out, job)

    def _withdraw(self, names: Collection[str]) -> None:
        for job in self._jobs:
            if any(name in names for name in job.start):
                job.error = ActorError("its removal or another restart came first")
            job.stop = [name for name in job.stop if name not in names]
            job.start = [name for name in job.start if name not in names]

    async def _carry_out(self, job: Job) -> None:
        try:
            while job.stop:
                await self._take_down(self._children[job.stop.pop(0)], job)
            if job.start:
                await trio.sleep(job.delay)
            while job.start:
                await self._start_again(self._children[job.start.pop(0)], job)
        except BaseException:  # it is cancelled, as all else is dealt with
            job.error = ActorGone(f"supervisor {self._context.name!r} ended")
            raise
        finally:
            self._jobs.discard(job)
            job.done.set()

    async def _take_down(self, child: Child[Any], job: Job) -> None:
        """Stop a child of a group that restarts; for good where it is not to start again."""
        if child.name not in job.start:
            self._discard(child)
        await self._stop(child)
        child.state = State.BACKING_OFF

    async def _start_again(self, child: Child[Any], job: Job) -> None:
        child.restarts += 1
        life = child.begin(trio.current_time())
        try:
            await self._launch(child, life)
        except Exception as error:
            job.error = error
            if not life.stopping:  # else it is in the hands of whoever stopped it
                self._ended(child, error, uptime=0.0)

    # The children

    def _add(self, spec: ChildSpec[M]) -> Child[M]:
        if spec.name in self._children:
            raise ChildExists(f"there is a child {spec.name!r} already")
        child = self._children[spec.name] = Child(spec)
        return child

    def _find(self, name: str) -> Child[Any]:
        try:
            return self._children[name]
        except KeyError:
            raise NoSuchChild(f"there is no child {name!r}") from None

    def _discard(self, child: Child[Any]) -> None:
        """Have a child end, if it lives, and be forgotten then."""
        if self._children.get(child.name) is not child:
            return
        self._withdraw([child.name])
        child.removed = True
        if child.life is None:
            self._forget(child)
        else:
            child.state = State.STOPPING
            child.life.cancel()

    def _forget(self, child: Child[Any]) -> None:
        self._withdraw([child.name])
        child.mailbox.close()
        del self._children[child.name]

    def _check_open(self) -> None:
        if not self._open:
            raise ActorGone("the supervisor does not run")
