"""An asyncio event loop inside a Trio program, owned by a scope; the only user of trio-asyncio.

What asyncio libraries need, and nothing more: run their coroutines from Trio, and give them Trio
functions to await. Cancellation crosses in both directions and is awaited on the far side; what
one side raises arrives on the other as itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple, cast

import attrs
import trio
import trio_asyncio  # type: ignore[import-untyped]

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_CLOSE_GRACE = 5.0
"""Seconds that asyncio tasks have to end in, once cancelled at close."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Bridge:
    """A running asyncio loop; see `open_bridge`."""

    loop: asyncio.AbstractEventLoop
    """For libraries that ask for one, and for starting servers and connections on it."""

    async def run_asyncio(self, async_fn: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> _T:
        """Run an asyncio function from Trio, as an asyncio task, and return what it returns.

        Waits until the task has ended, and nothing else bounds that. Cancelled, it cancels the
        asyncio task and still waits for its end; a task that swallows the cancellation and
        returns, returns here. Raises what the function raises, unwrapped. `asyncio.CancelledError`
        comes out only when asyncio code cancelled the task by itself.
        """
        runner = cast("Any", self.loop).run_aio_coroutine
        return cast(_T, await runner(_call(async_fn, *args)))

    async def run_trio(self, async_fn: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> _T:
        """Run a Trio function from asyncio, as a Trio task of this bridge; an *asyncio* coroutine.

        Waits until the Trio task has ended, and nothing else bounds that. `task.cancel()` on the
        asyncio side cancels the Trio task's scope and still waits for its end. Raises what the
        function raises, unwrapped: a single exception as it is, a group as the group it was.
        """
        failure: Exception | None = None

        async def child() -> _T | None:
            # trio-asyncio rebuilds the groups that it carries, so the error travels here.
            nonlocal failure
            try:
                return await async_fn(*args)
            except Exception as error:
                failure = error
                return None

        result = await cast("Any", self.loop).trio_as_future(child)
        if failure is not None:
            raise failure
        return cast(_T, result)


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Run an asyncio loop for as long as the block lasts.

    Leaving the block cancels every task of the loop, of both kinds, and waits for them. Asyncio
    tasks that have not ended 5 seconds after that are closed by force and named in the log, so
    that leaving is bounded. Cancelling the block does the same. What the block raises comes out
    as itself, not inside the groups of the loop's nurseries.
    """
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_log_unowned)
        try:
            yield Bridge(loop)
        except Exception as error:
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                await loop.run_aio_coroutine(_end_tasks())
    if failure is not None:
        raise failure


async def _call(async_fn: Callable[[*_Args], Awaitable[_T]], *args: *_Args) -> _T:
    """Call inside asyncio, for functions that ask for the running loop before they await."""
    return await async_fn(*args)


def _log_unowned(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task owns, as asyncio does; trio-asyncio's own way is to end the whole loop.

    A peer can cause such errors (a failing accept, a protocol callback that raises), so that they
    must not end a server.
    """
    _log.error("asyncio: %s", context.get("message"), exc_info=context.get("exception"))


async def _end_tasks() -> None:
    """Cancel and await all other tasks of the running loop (asyncio)."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    _, stuck = await asyncio.wait(tasks, timeout=_CLOSE_GRACE)
    for task in stuck:
        _log.error("asyncio task %s ignored its cancellation: closing it", task.get_name())
        coroutine = cast("Any", task.get_coro())
        try:
            coroutine.close()
        except RuntimeError as error:
            _log.error("asyncio task %s awaits while it is closed: %s", task.get_name(), error)
        task.cancel()
