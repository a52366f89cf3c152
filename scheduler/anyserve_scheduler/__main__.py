"""`python -m anyserve_scheduler`: serve as the scheduler of a fleet until told to stop."""

from __future__ import annotations

import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import trio

from anyserve import __version__, collector, heap, logs
from anyserve.cli.arguments import complain, say
from anyserve.errors import innermost
from anyserve.transport.listening import CannotListen
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from anyserve_scheduler.settings import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scheduler; its exit status: 0 stopped, 1 it could not start, 2 bad options."""
    options = parse(arguments)
    logs.configure(options.log_format, options.log_level, actor="scheduler")
    logging.getLogger("anyserve_scheduler").setLevel(options.log_level.upper())
    _allow_many_files()
    try:
        trio.run(_serve, options.config)
    except CannotListen as error:
        complain(error)
        return 1
    return 0


def _allow_many_files() -> None:
    """Raise the soft limit: each replica takes two sockets, each client one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where the system has another bound, that stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(config: SchedulerConfig) -> None:
    scheduler = Scheduler(config)
    failure: BaseException | None = None
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with scheduler.running():
                collector.settle()
                heap.settle()
                if scheduler.http_address is not None:
                    say(f"HTTP on {scheduler.http_address}")
                say(f"anyserve {__version__}: scheduler ready on {scheduler.address}")
                await anext(signals)
                say(f"draining: {scheduler.ways.in_flight} requests in flight")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_signalled, signals, nursery.cancel_scope)
                    await scheduler.drain()
                    nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = innermost(group)
    if failure is not None:
        raise failure
    say("stopped")


async def _until_signalled(signals: AsyncIterator[int], drain: trio.CancelScope) -> None:
    """Give the drain up at the second signal."""
    await anext(signals)
    drain.cancel()


if __name__ == "__main__":
    sys.exit(main())
