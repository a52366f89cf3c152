"""Notices a handler that blocks the worker's event loop, and names it in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from anyserve.app import Handler

log = logging.getLogger("anyserve.worker")

_TRIO = str(Path(trio.__file__).parent)
BLOCKED_AFTER = 1.0
"""Seconds without a step of the event loop before the handler is named."""


class Watchdog:
    """A thread that looks at the event loop's pulse; the replica replaces a worker that has none.

    It can see nothing while native code holds the interpreter lock; then the replica's own
    heartbeat is the one to notice.
    """

    def __init__(self, handlers: Sequence[Handler], running: Callable[[], list[str]]) -> None:
        self._codes = {
            handler.function.__code__: handler.offer.name
            for handler in handlers
            if hasattr(handler.function, "__code__")
        }
        self._running = running
        self._pulse = time.monotonic()
        self._done = threading.Event()
        self._loop_thread = threading.get_ident()

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
        reported = 0.0
        while not self._done.wait(BLOCKED_AFTER / 2):
            pulse = self._pulse
            blocked = time.monotonic() - pulse
            if blocked > BLOCKED_AFTER and pulse != reported:
                reported = pulse
                description = self._describe(blocked)
                if description is not None:
                    log.error("%s", description)

    def _describe(self, blocked: float) -> str | None:
        """Who blocks the loop; None where nobody does and the machine has no time for it."""
        frame = sys._current_frames().get(self._loop_thread)
        stack = [] if frame is None else list(traceback.walk_stack(frame))
        if stack and stack[0][0].f_code.co_filename.startswith(_TRIO):
            return None
        named = next((self._codes[f.f_code] for f, _ in stack if f.f_code in self._codes), None)
        where = f"{stack[0][0].f_code.co_filename}:{stack[0][1]}" if stack else "native code"
        who = f"the handler of {named!r}" if named else f"something (running: {self._running()})"
        return (
            f"{who} has blocked the event loop for {blocked:.1f} s, at {where};"
            " make it a plain function, which runs in a thread"
        )
