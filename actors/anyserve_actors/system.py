"""The root of a tree of actors: opened, looked at, and closed with everything in it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from anyserve_actors.actor import Actor
from anyserve_actors.child import Child, ChildSpec
from anyserve_actors.errors import sole
from anyserve_actors.tree import Node


@attrs.frozen(eq=False)
class Tree:
    """A running tree of actors."""

    _root: Child[Any]

    def snapshot(self, now: float) -> Node:
        """The whole tree as it is at `now`, a `trio.current_time()`."""
        return self._root.node("", now)


@asynccontextmanager
async def open_tree(name: str, root: Actor[Any]) -> AsyncIterator[Tree]:
    """Run `root`, as a rule a `Supervisor`, while the block runs.

    Waits until `root` is ready, bounded by the caller's scope, and raises what it failed with
    before. Leaving the block, or cancelling it, ends the tree and waits for its end, which the
    children's shutdown timeouts bound. A root that fails later cancels the block and is raised
    from it, as itself unless the block failed too.
    """
    place = Child(ChildSpec(name, lambda: root, shutdown_timeout=math.inf))
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            life = place.begin(trio.current_time())
            await nursery.start(partial(place.live, life, ""), name=f"actor {name}")
            try:
                yield Tree(place)
            finally:
                life.cancel()
    except BaseExceptionGroup as group:
        error = sole(group)
    if error is not None:
        raise error
