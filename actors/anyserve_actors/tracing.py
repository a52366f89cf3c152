"""Tracing a live process: Trio's task steps by an instrument, requests by named spans.

`start` installs the instrument and `stop` takes it out again. In between every task step costs
about two microseconds more; otherwise Trio has nothing to call, and `span` is one comparison.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from array import array
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

import attrs
import trio

from anyserve_actors.errors import ActorError
from anyserve_actors.recording import Recording, Span
from anyserve_actors.tree import Detail

ROW_LIMIT = 2000
"""Names of tasks that a recording tells apart; the others share a row."""
_OTHER = "(other tasks)"
_OFF = nullcontext()
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TracingError(ActorError):
    """Tracing was started while it ran, or stopped while it did not."""


@attrs.define(eq=False)
class _Recorder(trio.abc.Instrument):
    """The instrument, and the bounded buffer that it and the spans fill."""

    process: str
    limit: int
    """Events that the buffer holds; what comes later is counted and dropped."""
    blocking: int
    began: int = attrs.field(factory=time.monotonic_ns)
    rows: dict[str, int] = attrs.field(init=False, factory=lambda: {_OTHER: 0})
    steps: array[int] = attrs.field(init=False, factory=lambda: array("q"))
    spans: list[Span] = attrs.field(init=False, factory=list)
    open_spans: dict[OpenSpan, None] = attrs.field(init=False, factory=dict)
    dropped: int = 0
    # When tasks became runnable that have not run since; as many as there are tasks.
    _runnable: dict[trio.lowlevel.Task, int] = attrs.field(init=False, factory=dict)
    _step_began: int = 0  # 0: the step that runs began before the recorder
    _step_waited: int = 0
    _room: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._room = self.limit

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._runnable[task] = time.monotonic_ns()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        now = self._step_began = time.monotonic_ns()
        self._step_waited = now - self._runnable.pop(task, now)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._step_began and self.takes_one():
            duration = time.monotonic_ns() - self._step_began
            self.steps.extend((self.row(task.name), self._step_began, duration, self._step_waited))

    def after_run(self) -> None:
        global _active
        _active = None

    def takes_one(self) -> bool:
        """Whether there is room for one more event, which is then used up."""
        if self._room == 0:
            self.dropped += 1
            return False
        self._room -= 1
        return True

    def row(self, name: str) -> int:
        """The number of the row called `name`."""
        row = self.rows.get(name)
        if row is None:
            row = 0 if len(self.rows) >= ROW_LIMIT else self.rows.setdefault(name, len(self.rows))
        return row

    def recording(self) -> Recording:
        """All that was recorded; spans that have not ended yet end here and say so."""
        for span in tuple(self.open_spans):
            span.close(unfinished=True)
        return Recording(
            pid=os.getpid(),
            process=self.process,
            began=self.began,
            ended=time.monotonic_ns(),
            rows=tuple(self.rows),
            spans=tuple(self.spans),
            dropped=self.dropped,
            blocking=self.blocking,
            packed_steps=self.steps,
            machine=_machine(),
            wall=time.time_ns() - time.monotonic_ns(),
        )


@attrs.define(eq=False)
class OpenSpan(AbstractContextManager[None]):
    """A span that has not ended."""

    recorder: _Recorder
    name: str
    request_id: str
    args: dict[str, Detail]
    id: str = ""
    parent: str = ""
    row: int = 0
    began: int = 0

    def __enter__(self) -> None:
        self.row = self.recorder.row(_current_name())
        self.recorder.open_spans[self] = None
        self.began = time.monotonic_ns()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error=None if error_type is None else error_type.__name__)

    def mark(self, name: str) -> None:
        """Note that something happens now, as an arg: the microseconds since the span began."""
        self.args[name] = (time.monotonic_ns() - self.began) // 1000

    def close(self, *, error: str | None = None, unfinished: bool = False) -> None:
        """Record the span, unless it has been. error: what it failed with."""
        recorder = self.recorder
        if self not in recorder.open_spans:
            return
        del recorder.open_spans[self]
        if error is not None:
            self.args["error"] = error
        if unfinished:
            self.args["unfinished"] = True
        if recorder.takes_one():
            duration = max(1, time.monotonic_ns() - self.began)
            recorder.spans.append(
                Span(
                    self.name,
                    self.request_id,
                    self.row,
                    self.began,
                    duration,
                    self.args,
                    self.id,
                    self.parent,
                )
            )


_active: _Recorder | None = None


def start(process: str = "", *, limit: int = 200_000, blocking: float = 0.05) -> None:
    """Record this process from now on; call it in Trio.

    `process` is its name in the trace; `limit` the events that are kept, of 32 bytes each and
    more for spans; `blocking` the seconds from which on a task step is said to block the event
    loop. Raises `TracingError` where the process is recorded already.
    """
    global _active
    if _active is not None:
        raise TracingError("this process is being traced already")
    recorder = _Recorder(process or f"process {os.getpid()}", limit, round(blocking * 1e9))
    trio.lowlevel.add_instrument(recorder)
    _active = recorder


def stop() -> Recording:
    """Record no more; what was recorded. Raises `TracingError` where nothing was."""
    global _active
    recorder = _active
    if recorder is None:
        raise TracingError("this process is not being traced")
    _active = None
    with suppress(KeyError):  # Trio takes out an instrument that failed, and logs why
        trio.lowlevel.remove_instrument(recorder)
    return recorder.recording()


def active() -> bool:
    """Whether this process is being recorded."""
    return _active is not None


def span(
    name: str, request_id: str, *, id: str = "", parent: str = "", **args: Detail
) -> AbstractContextManager[None]:
    """Name what the block does for a request; nothing at all while no trace is recorded.

    Spans of one request id join into one line of the trace, across tasks and processes. Works in
    threads too. Where several requests have one id, their spans are told apart by `parent`, the
    `id` of the span that they are a part of.
    """
    recorder = _active
    if recorder is None:
        return _OFF
    return OpenSpan(recorder, name, request_id, args, id, parent)


def begin(
    name: str, request_id: str, *, id: str = "", parent: str = "", **args: Detail
) -> OpenSpan | None:
    """As `span`, for what is no block: its end is told by `close`. None while nothing records."""
    recorder = _active
    if recorder is None:
        return None
    span = OpenSpan(recorder, name, request_id, args, id, parent)
    span.__enter__()
    return span


def _current_name() -> str:
    try:
        return trio.lowlevel.current_task().name
    except RuntimeError:  # not in Trio
        return f"thread {threading.current_thread().name}"


def _machine() -> str:
    """What the monotonic clock is of: a machine since it was started, as far as can be told."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # no Linux
        return platform.node()
