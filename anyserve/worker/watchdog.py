"""Notices a handler that blocks the worker's event loop, and names it in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import attrs
import trio

from anyserve.app import Handler

log = logging.getLogger("anyserve.worker")

_TRIO = str(Path(trio.__file__).parent)
BLOCKED_AFTER = 1.0
"""Seconds without a step of the event loop before the handler is named."""


@attrs.frozen(eq=False)
class _Watched:
    """Handlers that run on the loop."""

    names: Mapping[CodeType, str]
    """Their capabilities, by the code of their functions."""
    running: Callable[[], list[str]]
    """The capabilities of the requests in progress."""


class Watchdog:
    """A thread that looks at the event loop's pulse, for all apps that run on the loop.

    A replica replaces a worker that has none. The thread can see nothing while native code holds
    the interpreter lock; then the replica's own heartbeat is the one to notice.
    """

    def __init__(self) -> None:
        """Made in the thread of the loop."""
        self._watched: tuple[_Watched, ...] = ()
        self._pulse = time.monotonic()
        self._reported = 0.0
        """The pulse after which somebody was named."""
        self._done = threading.Event()
        self._loop_thread = threading.get_ident()

    @contextmanager
    def watching(
        self, handlers: Iterable[Handler], running: Callable[[], list[str]]
    ) -> Iterator[None]:
        """Name these handlers, too, for the time of the block; before the first, nobody is."""
        names = {
            handler.function.__code__: handler.offer.name
            for handler in handlers
            if hasattr(handler.function, "__code__")
        }
        watched = _Watched(names, running)
        self._pulse = time.monotonic()  # what came before is not theirs
        self._watched += (watched,)
        try:
            yield
        finally:
            self._watched = tuple(other for other in self._watched if other is not watched)

    async def run(self) -> None:
        """Beat until cancelled, with the thread watching."""
        thread = threading.Thread(target=self._watch, name="anyserve watchdog", daemon=True)
        thread.start()
        try:
            while True:
                self._pulse = time.monotonic()
                await trio.sleep(BLOCKED_AFTER / 2)
        finally:
            self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(BLOCKED_AFTER / 2):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Log who blocks the loop, once for each time that it stands still.

        now: of `time.monotonic`. Called in any other thread.
        """
        pulse = self._pulse
        if self._watched and now - pulse > BLOCKED_AFTER and pulse != self._reported:
            description = self._describe(now - pulse)
            if description is not None:  # else it may be somebody by the next look
                self._reported = pulse
                log.error("%s", description)

    def _describe(self, blocked: float) -> str | None:
        """Who blocks the loop; None where nobody does and the machine has no time for it."""
        frame = sys._current_frames().get(self._loop_thread)
        stack = [] if frame is None else list(traceback.walk_stack(frame))
        if stack and stack[0][0].f_code.co_filename.startswith(_TRIO):
            return None
        watched = self._watched
        names = {code: name for one in watched for code, name in one.names.items()}
        named = next((names[f.f_code] for f, _ in stack if f.f_code in names), None)
        where = f"{stack[0][0].f_code.co_filename}:{stack[0][1]}" if stack else "native code"
        running = [name for one in watched for name in one.running()]
        who = f"the handler of {named!r}" if named else f"something (running: {running})"
        return (
            f"{who} has blocked the event loop for {blocked:.1f} s, at {where};"
            " make it a plain function, which runs in a thread"
        )
