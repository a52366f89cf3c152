"""Tasks that run one job after another: a new one for each costs more than all else of an echo."""

from __future__ import annotations

import contextvars
import logging
import math
from typing import Protocol

import attrs
import trio

log = logging.getLogger("anyserve.worker")

_KEPT = 256
"""Tasks that wait for a job; those that end theirs while there are so many end as well."""


class Job(Protocol):
    """What is to be run, in a cancel scope."""

    scope: trio.CancelScope
    """Given to it when it starts. Cancelling it stops the job; nobody may who has seen its end."""

    async def run(self) -> None:
        """Run in `scope`, which may be given a deadline; raises nothing but its cancellation."""
        ...


@attrs.define(eq=False)
class _Place:
    """A task that waits for a job, and the scope that it is in."""

    task: trio.lowlevel.Task
    scope: trio.CancelScope
    job: Job | None = None


class Tasks:
    """Runs jobs as tasks of a nursery.

    While it runs, a job has its task, its cancel scope and its context variables to itself. Then
    all but the variables go to the next job, unless the scope was cancelled: that one ends.
    """

    def __init__(self, nursery: trio.Nursery, name: str) -> None:
        """name: what the tasks are called."""
        self._nursery = nursery
        self._name = name
        self._waiting: dict[_Place, None] = {}

    def start(self, job: Job) -> None:
        """Run `job`, from the next turn of the loop on."""
        if self._waiting:
            place, _ = self._waiting.popitem()
            job.scope = place.scope
            place.job = job
            place.task.context = contextvars.copy_context()
            trio.lowlevel.reschedule(place.task)
        else:
            job.scope = trio.CancelScope()
            self._nursery.start_soon(self._run, job, name=self._name)

    async def _run(self, first: Job) -> None:
        place = _Place(trio.lowlevel.current_task(), first.scope, first)
        del first
        scope = place.scope
        try:
            with scope:
                while (job := place.job) is not None:
                    await job.run()
                    # What the job holds must not be kept until the next one comes.
                    job = place.job = None
                    if scope.cancel_called or len(self._waiting) >= _KEPT:
                        break
                    if scope.deadline != math.inf:
                        scope.deadline = math.inf
                    await self._wait(place)
        except Exception:
            log.exception("a job failed while it was cancelled")

    async def _wait(self, place: _Place) -> None:
        """Until `start` has a job for it; no other task may be given one that is cancelled."""

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            del self._waiting[place]
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[place] = None
        await trio.lowlevel.wait_task_rescheduled(abort)
