"""Questions to replicas that are rare, each in a task: one of them, or all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import attrs
import trio

from anyserve.errors import AnyServeError, DeadlineExceeded, Unavailable
from anyserve.replica.handback import LINK_TOKEN
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.fleet import ReplicaView
from anyserve_scheduler.links import Links

PREFIX = "/inference.GRPCInferenceService/"
ANSWER_TIMEOUT = 5.0
"""Seconds for a replica to answer what it knows without work."""
_AT_ONCE = 32
"""Replicas that are asked at the same time for one caller."""

Reply = TypeVar("Reply")


@attrs.frozen
class Said(Generic[Reply]):
    """What one replica has answered."""

    replica: str
    reply: Reply | None
    error: AnyServeError | None
    """Instead of the reply."""


@attrs.frozen
class Questions:
    """Asks replicas, each of which hears that it is the scheduler, and answers for itself alone."""

    _channels: Channels
    _links: Links

    async def ask(
        self,
        replica: ReplicaView,
        method: str,
        request: Any,
        reply_type: type[Reply],
        within: float = ANSWER_TIMEOUT,
    ) -> Reply:
        """Call a method of the inference service at one replica.

        Waits for the answer, `within` seconds at most. Raises what the replica answers, and
        `Unavailable` for one that does not.
        """
        link = self._links.get(replica.id)
        if link is None or link.epoch != replica.epoch:
            raise Unavailable(f"replica {replica.id} is gone")
        metadata = {LINK_TOKEN: link.token}
        with trio.move_on_after(within) as scope:
            try:
                channel = await self._channels.open(replica)
                return await channel.unary(PREFIX + method, request, reply_type, metadata=metadata)
            except DeadlineExceeded as error:
                if not scope.cancel_called:
                    raise Unavailable(error.message) from error
        raise Unavailable(f"replica {replica.id} does not answer")

    async def ask_all(
        self,
        replicas: Iterable[ReplicaView],
        method: str,
        request: Any,
        reply_type: type[Reply],
        within: float = ANSWER_TIMEOUT,
    ) -> list[Said[Reply]]:
        """Ask all of them at once, and give what each says, by its id.

        Waits as `ask`, and raises nothing. Cancelled, the calls are.
        """
        said: list[Said[Reply]] = []
        limiter = trio.CapacityLimiter(_AT_ONCE)

        async def ask_one(replica: ReplicaView) -> None:
            async with limiter:
                try:
                    reply = await self.ask(replica, method, request, reply_type, within)
                except AnyServeError as error:
                    said.append(Said(replica.id, None, error))
                else:
                    said.append(Said(replica.id, reply, None))

        async with trio.open_nursery() as nursery:
            for replica in replicas:
                nursery.start_soon(ask_one, replica)
        return sorted(said, key=lambda each: each.replica)
