"""The live tree of actors as plain values, taken at one moment."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import attrs

Detail: TypeAlias = str | int | float | bool | None


class State(enum.StrEnum):
    """What an actor is doing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing off"
    """It ended and will start again."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    """It ended normally, or was stopped."""
    FAILED = "failed"
    """It ended with an error and will not start again."""


@attrs.frozen
class Node:
    """One actor and what it supervises."""

    name: str
    path: str
    """The names from the root to this actor, joined by `/`."""
    kind: str
    """The actor's class; empty before its first start."""
    state: State
    age: float
    """Seconds since its present life began, or, between lives, since the last one ended."""
    mailbox_depth: int
    """Messages that wait."""
    mailbox_capacity: int
    restarts: int
    """Times that its supervisor started it again."""
    last_error: str | None
    """Type and message of what ended its last failed life, on one line."""
    details: Mapping[str, Detail]
    """What the actor says of itself, such as a process id."""
    children: tuple[Node, ...]
    """In the order in which they start."""

    def walk(self) -> Iterator[Node]:
        """This node and all under it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, path: str) -> Node | None:
        """The node at `path`, or None."""
        return next((node for node in self.walk() if node.path == path), None)
