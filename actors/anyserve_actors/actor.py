"""An actor: an object that owns its state and runs in one Trio task with its own nursery."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import attrs
import trio

from anyserve_actors.mailbox import Address, Mailbox
from anyserve_actors.tree import Detail, Node

M = TypeVar("M")


class ActorLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry the actor's path as `actor`."""

    def __init__(self, logger: logging.Logger, path: str) -> None:
        super().__init__(logger, {"actor": path})
        self._path = path

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**kwargs.get("extra", {}), "actor": self._path}
        return msg, kwargs


@attrs.frozen(eq=False)
class Context(Generic[M]):
    """What one life of an actor is given to run with."""

    name: str
    path: str
    """The names from the root of the tree to this actor, joined by `/`."""
    mailbox: Mailbox[M]
    """Where its messages come from: `async for message in context.mailbox`."""
    nursery: trio.Nursery
    """For what the actor starts; the actor ends when `run` has returned and this is empty."""
    log: ActorLogger
    _on_started: Callable[[], None]

    @property
    def address(self) -> Address[M]:
        """The actor's own address."""
        return Address(self.mailbox)

    def started(self) -> None:
        """Say that the actor is ready. Whoever starts it waits for this; call it once.

        An actor that takes long to load and can take messages meanwhile calls it early.
        """
        self._on_started()


class Actor(abc.ABC, Generic[M]):
    """State with one task of its own, reached only through its address.

    class Counter(Actor[Add | Get]):
        async def run(self, context):
            total = 0
            context.started()
            async for message in context.mailbox:
                match message:
                    case Add(amount): total += amount
                    case Get(reply): reply.set(total)

    A server without messages starts its tasks in `context.nursery`, calls `context.started()`
    and never looks at its mailbox.
    """

    @abc.abstractmethod
    async def run(self, context: Context[M]) -> None:
        """The actor's life: get ready, call `context.started()`, work.

        It is stopped by cancellation, so it must not shield itself without a bound. Returning is
        a normal end; raising is a failure.
        """

    async def aclose(self) -> None:
        """Release what the actor holds; called once, however `run` ended, when it has ended.

        Shielded from cancellation, and cut off after the child's `shutdown_timeout`.
        """

    def details(self) -> Mapping[str, Detail]:
        """A few facts for the actor's node in the tree; must not fail or wait."""
        return {}

    def children(self, path: str, now: float) -> tuple[Node, ...]:
        """The nodes under this actor's, which is at `path`; supervisors have some."""
        return ()
