"""The root of a tree of actors: opened, looked at, and closed with everything in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from anyserve_actors.actor import Actor
from anyserve_actors.child import Child, ChildSpec
from anyserve_actors.errors import sole
from anyserve_actors.tree import Node


class Tree:
    """A tree of actors, which can be looked at from before it runs until after."""

    def __init__(self, name: str, root: Actor[Any]) -> None:
        self._place = Child(ChildSpec(name, lambda: root, shutdown_timeout=math.inf))

    def snapshot(self, now: float) -> Node:
        """The whole tree as it is at `now`, a `trio.current_time()`."""
        return self._place.node("", now)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the root, as a rule a `Supervisor`, while the block runs.

        Waits until the root is ready, bounded by the caller's scope, and raises what it failed
        with before. Leaving the block, or cancelling it, ends the tree and waits for its end, which
        the children's shutdown timeouts bound. A root that fails later cancels the block and is
        raised from it, as itself unless the block failed too.
        """
        error: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                life = self._place.begin(trio.current_time())
                name = f"actor {self._place.name}"
                await nursery.start(partial(self._place.live, life, ""), name=name)
                try:
                    yield
                finally:
                    life.cancel()
        except BaseExceptionGroup as group:
            error = sole(group)
        if error is not None:
            raise error


@asynccontextmanager
async def open_tree(name: str, root: Actor[Any]) -> AsyncIterator[Tree]:
    """A tree that runs while the block runs; see `Tree.running`."""
    tree = Tree(name, root)
    async with tree.running():
        yield tree
