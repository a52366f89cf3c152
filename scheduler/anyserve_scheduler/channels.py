"""The scheduler's channels to its replicas: one each, opened when it is first wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.errors import Unavailable
from anyserve.transport.rpc import Limits
from anyserve.transport.trio_client import Channel, open_channel
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet, ReplicaView
from anyserve_scheduler.watched import WatchedRegistry

GOODBYE = 2.0
"""Seconds that a replica which has said goodbye may take to end its connections."""


@attrs.define(eq=False)
class _Open:
    """An open channel; its task holds it until the scope is cancelled."""

    epoch: int
    address: str
    channel: Channel | None = None
    """Set while it is open."""
    decided: trio.Event = attrs.field(factory=trio.Event)
    """Whether it is open, or never will be."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class Channels(Actor[None]):
    """Keeps at most one channel for each replica that holds a lease, and closes it with the lease.

    A channel connects at its first call, and again when its connection is lost. Closing it ends
    the calls that are open with `Unavailable`. Where a replica has said goodbye, they have
    `GOODBYE` seconds before that: what it has said of them may still be on its way.
    """

    def __init__(self, registry: WatchedRegistry, limits: Limits) -> None:
        """limits: of each channel."""
        self._registry = registry
        self._limits = limits
        self._channels: dict[str, _Open] = {}
        self._nursery: trio.Nursery
        registry.follow(self._follow)

    def details(self) -> Mapping[str, Detail]:
        return {"channels": len(self._channels)}

    async def run(self, context: Context[None]) -> None:
        """Hold channels until stopped."""
        self._nursery = context.nursery
        context.started()
        await trio.sleep_forever()

    def get(self, replica: ReplicaView) -> Channel | None:
        """The channel to a replica, where there is one: nearly always, and at no cost."""
        opened = self._channels.get(replica.id)
        if opened is None or opened.address != replica.address:
            return None
        return opened.channel

    async def open(self, replica: ReplicaView) -> Channel:
        """The channel to a replica, opened where there is none.

        Waits a turn of the loop, and not for the replica. Raises `Unavailable` for a replica whose
        lease is over. Cancelled, the channel may have been opened.
        """
        opened = self._channels.get(replica.id)
        if opened is not None and opened.address != replica.address:
            self._close(replica.id)  # it has moved, within its lease
            opened = None
        if opened is None:
            held = self._registry.fleet().replicas.get(replica.id)
            if held is None or held.epoch != replica.epoch:
                raise Unavailable(f"replica {replica.id} is gone")
            opened = self._channels[replica.id] = _Open(replica.epoch, replica.address)
            self._nursery.start_soon(self._hold, opened)
        await opened.decided.wait()
        if opened.channel is None:
            raise Unavailable(f"replica {replica.id} is gone")
        return opened.channel

    async def _hold(self, opened: _Open) -> None:
        try:
            with opened.scope:
                async with open_channel(opened.address, limits=self._limits) as opened.channel:
                    opened.decided.set()
                    await trio.sleep_forever()
        finally:
            opened.channel = None
            opened.decided.set()

    def _follow(self, news: Sequence[Change] | Fleet) -> None:
        if isinstance(news, Fleet):
            for id, opened in tuple(self._channels.items()):
                view = news.replicas.get(id)
                if view is None or view.epoch != opened.epoch:
                    self._close(id)
            return
        for change in news:
            if change.kind in (ChangeKind.LEFT, ChangeKind.JOINED):
                self._close(change.id, GOODBYE if change.goodbye else 0.0)

    def _close(self, id: str, grace: float = 0.0) -> None:
        opened = self._channels.pop(id, None)
        if opened is not None:
            opened.scope.deadline = trio.current_time() + grace
