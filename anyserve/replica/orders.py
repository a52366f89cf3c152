"""What the scheduler wants loaded and unloaded: done one after the other, by the repository."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs
from anyserve_actors import Actor, Address, Context, Detail

from anyserve.errors import AnyServeError
from anyserve.replica.repository import LoadModel, UnloadModel
from anyserve.waiting import Waiter


@attrs.frozen
class Order:
    """One thing that the scheduler wants."""

    name: str
    """Of the capability."""
    load: bool
    """Whether it is to be loaded, or unloaded."""
    reason: str
    """The scheduler's, in words."""


class Orders(Actor[None]):
    """Carries out orders in their turn, so that what makes room is gone before the next one loads.

    What becomes of them is not answered: the replica reports what it offers. For each capability
    only the last order counts, so that there are never more than capabilities on demand.
    """

    def __init__(
        self, names: Collection[str], repository: Address[LoadModel | UnloadModel]
    ) -> None:
        """names: of the capabilities on demand; orders for others are ignored."""
        self._names = frozenset(names)
        self._repository = repository
        self._pending: dict[str, Order] = {}
        self._current: str | None = None
        self._more = Waiter()

    def details(self) -> Mapping[str, Detail]:
        return {"waiting": len(self._pending), "current": self._current}

    def give(self, order: Order) -> None:
        """Have an order carried out after those before it; never waits."""
        if order.name in self._names:
            self._pending.pop(order.name, None)
            self._pending[order.name] = order
            self._more.wake()

    async def run(self, context: Context[None]) -> None:
        """Carry out orders until stopped, each for as long as it takes."""
        context.started()
        while True:
            while not self._pending:
                await self._more.wait()
            order = self._pending.pop(next(iter(self._pending)))
            self._current = f"{'loading' if order.load else 'unloading'} {order.name}"
            context.log.info("%s: %s", self._current, order.reason)
            try:
                await self._carry_out(order)
            except AnyServeError as error:
                context.log.warning("%s", error.message)
            self._current = None

    async def _carry_out(self, order: Order) -> None:
        name = order.name
        if order.load:
            await self._repository.ask(lambda reply: LoadModel(name, reply))
        else:
            await self._repository.ask(lambda reply: UnloadModel(name, reply, at_once=False))
