"""What is sent together is written together, one write for each peer.

A task that has read from a socket handles all that has come in one `with burst:`; whatever that
makes others send is written when the block ends. `each_turn` does the same for all that the tasks
of one turn of Trio's loop send. Without either, those who write are woken, a turn later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

import trio

_log = logging.getLogger("anyserve")


def nothing() -> None:
    """What is called where there is nothing to do."""


class Outlet(Protocol):
    """Something that gathers output."""

    def settle(self) -> None:
        """Write what has gathered, as far as the socket takes it now.

        It says `woke` where that may have let a task go on.
        """
        ...


class _State(threading.local):
    """Of one thread, and so of the one Trio run that it can have."""

    def __init__(self) -> None:
        self.due: dict[Outlet, None] = {}
        self.began: float | None = None
        """When the burst that is open began; None where none is."""
        self.bursts = 0
        self.turns = 0
        self.woken = False
        """Whether a task may go on that could not before."""


_state = _State()


def defer(outlet: Outlet) -> bool:
    """Have `outlet` settle at the end of the burst or of the turn; False where there is neither."""
    state = _state
    if not state.bursts and not state.turns:
        return False
    state.due[outlet] = None
    return True


def now() -> float:
    """Trio's time; in a burst the time when it began, which all that is in it has come with."""
    began = _state.began
    return trio.current_time() if began is None else began


def woke() -> None:
    """A task may go on: at the end of a turn, Trio would not see that by itself."""
    _state.woken = True


def _settle() -> None:
    """Settle all that is due, and what becomes due by that."""
    due = _state.due
    while due:
        outlet = next(iter(due))
        del due[outlet]
        outlet.settle()


class _Burst:
    """What is in a burst never waits, so that a thread has no two open but one in the other."""

    def __enter__(self) -> None:
        _state.bursts += 1
        if _state.began is None:
            _state.began = trio.current_time()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if _state.bursts == 1:
                _settle()
        finally:
            _state.bursts -= 1
            if not _state.bursts:
                _state.began = None


burst = _Burst()


class _Turn(trio.abc.Instrument):
    """Settles when all tasks that could run have, before Trio waits for what comes next."""

    def before_io_wait(self, timeout: float) -> None:
        state = _state
        if not state.due:
            return
        state.woken = False
        try:
            _settle()
        except Exception:
            # Trio would take the instrument out, and all that is sent later would stay here.
            _log.exception("an outlet can't be settled")
            state.woken = True
        if state.woken:
            # Trio has seen no task to run, and may wait for long.
            trio.lowlevel.current_trio_token().run_sync_soon(nothing, idempotent=True)


@contextmanager
def each_turn() -> Iterator[None]:
    """Settle at the end of each turn of Trio's loop, while the block runs."""
    turn = _Turn()
    trio.lowlevel.add_instrument(turn)
    _state.turns += 1
    try:
        yield
    finally:
        _state.turns -= 1
        trio.lowlevel.remove_instrument(turn)
        _settle()
