"""An app on this replica: what it declares, what of it is wanted, and whether it serves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import attrs
import trio

from anyserve.app import Condition
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Executor
from anyserve.replica.pool import State


class LoadFailed(Exception):
    """An app could not be imported or loaded; the message is one line for people."""


@attrs.frozen
class AppSpec:
    """An app and how its workers run."""

    name: str
    """What its workers are called after."""
    target: str
    """`module:attribute` of the app or of a factory."""
    options: Mapping[str, str] = attrs.field(factory=dict)
    """Keyword arguments of the factory."""
    python: str = sys.executable
    """The interpreter of its workers, for an environment of their own."""
    workers: int = 1
    in_process: bool = False
    """Whether it runs in the replica's own process, as one worker without a process."""
    log_format: str = "text"
    log_level: str = "info"


class Group:
    """What the worker links of one app report, and what the replica wants of them."""

    def __init__(self, spec: AppSpec, dispatcher: Dispatcher) -> None:
        self.spec = spec
        self.wanted: set[str] = set()
        """The capabilities that are to be served."""
        self.wanted_event = trio.Event()
        """Set while something is wanted; a worker loads its app only then."""
        self.starting = trio.CancelScope()
        """Around the start of its workers."""
        self.changing = trio.Lock()
        """Held while its workers are started or stopped at run time."""
        self.declared: list[Offer] | None = None
        """All that the app offers; None until a worker has imported it."""
        self.dispatcher = dispatcher
        self._failure: str | None = None
        self._ready = 0
        self._changed = trio.Event()

    @property
    def worker_names(self) -> list[str]:
        """The names of its workers, numbered from 0."""
        return [f"{self.spec.name}-{index}" for index in range(self.spec.workers)]

    def want(self, names: set[str]) -> None:
        """Set what is to be served; workers that wait for it go on to load."""
        self.wanted = names
        self._failure = None
        if names:
            self.wanted_event.set()
        else:
            self.wanted_event = trio.Event()

    async def until_declared(self) -> list[Offer]:
        """Wait until a worker has imported the app; raises `LoadFailed` when one can't.

        The caller's scope bounds it.
        """
        while self.declared is None:
            await self._next_change()
        return self.declared

    async def until_ready(self) -> None:
        """Wait until a worker serves; raises `LoadFailed` when one fails first.

        The caller's scope bounds it.
        """
        while not self._ready:
            await self._next_change()

    async def _next_change(self) -> None:
        if self._failure is not None:
            raise LoadFailed(self._failure)
        await self._changed.wait()

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # What worker links report.

    def on_declared(self, offers: Sequence[Offer]) -> None:
        """A worker has imported the app."""
        self.declared = list(offers)
        for offer in offers:
            self.dispatcher.declare(offer)
        self._change()

    def on_ready(self, executor: Executor, offers: Sequence[Offer]) -> None:
        """A worker has loaded the app."""
        self._ready += 1
        self.dispatcher.worker_up(executor, offers)
        for name in self.wanted:
            self.dispatcher.set_state(name, State.READY)
        self._change()

    def on_retiring(self, executor: Executor, reason: str) -> None:
        """A worker is to be replaced and takes no more requests."""
        self.dispatcher.worker_retiring(executor, reason)

    def on_condition(self, executor: Executor, name: str, condition: Condition) -> None:
        """A worker says how what the capability `name` depends on is."""
        self.dispatcher.worker_condition(executor, name, condition)

    def on_down(self, executor: Executor, reason: str) -> None:
        """A worker that was ready is gone."""
        self._ready -= 1
        self.dispatcher.worker_down(executor, reason)
        executor.lost(reason)

    def on_failed(self, reason: str) -> None:
        """A worker has ended before it was ready."""
        self._failure = reason
        for offer in self.declared or ():
            self.dispatcher.explain(offer.name, reason)
        self._change()
