"""Where one task waits for another's word: cheaper than an event, and it remembers nothing."""

from __future__ import annotations

import trio

from anyserve.burst import woke


class Waiter:
    """Wakes the one task that waits, if there is one; whoever waits looks first."""

    _task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Wait until `wake`; bounded by the caller, and nothing is left when cancelled."""
        assert self._task is None, "two tasks wait at one place"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def wake(self) -> None:
        """Let the task that waits go on."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
            woke()

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
