"""Orders of the scheduler: one after the other, only for what is on demand, the last one counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing
from anyserve_actors import Actor, ChildSpec, Context, Supervisor, Tree

from anyserve.errors import Internal
from anyserve.replica.orders import Order, Orders
from anyserve.replica.repository import LoadModel, UnloadModel


class Repository(Actor[LoadModel | UnloadModel]):
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[LoadModel | UnloadModel] = []

    async def run(self, context: Context[LoadModel | UnloadModel]) -> None:
        context.started()
        async for message in context.mailbox:
            self.asked.append(message)

    async def answer(self, error: Exception | None = None) -> None:
        reply = self.asked[-1].reply
        reply.set(None) if error is None else reply.fail(error)
        await trio.testing.wait_all_tasks_blocked()

    def told(self) -> list[str]:
        return [
            f"{'load' if isinstance(message, LoadModel) else 'unload'} {message.name}"
            for message in self.asked
        ]


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Repository, Orders]]:
    repository = Repository()
    spec = ChildSpec("repository", lambda: repository)
    made: list[Orders] = []

    def new_orders() -> Orders:
        made.append(Orders(["x", "y"], root.address(spec)))
        return made[-1]

    root = Supervisor([spec, ChildSpec("orders", new_orders)])
    async with Tree("replica", root).running():
        yield repository, made[0]


def load(name: str) -> Order:
    return Order(name, True, "it is wanted")


def unload(name: str) -> Order:
    return Order(name, False, "it makes room")


async def give(orders: Orders, *given: Order) -> None:
    for order in given:
        orders.give(order)
    await trio.testing.wait_all_tasks_blocked()


async def test_an_order_is_carried_out_when_the_one_before_it_is_done() -> None:
    async with running() as (repository, orders):
        await give(orders, unload("y"), load("x"))
        assert repository.told() == ["unload y"]
        first = repository.asked[0]
        assert isinstance(first, UnloadModel)
        assert not first.at_once
        assert orders.details() == {"waiting": 1, "current": "unloading y"}
        await repository.answer()
        assert repository.told() == ["unload y", "load x"]
        await repository.answer()
        assert orders.details() == {"waiting": 0, "current": None}


async def test_what_fails_does_not_keep_the_next_one() -> None:
    async with running() as (repository, orders):
        await give(orders, load("x"), load("y"))
        await repository.answer(Internal("no memory"))
        assert repository.told() == ["load x", "load y"]


async def test_of_ten_thousand_orders_the_last_one_for_each_capability_counts() -> None:
    async with running() as (repository, orders):
        await give(orders, load("y"))
        for _ in range(5_000):
            give_now(orders)
        assert orders.details()["waiting"] == 2
        await repository.answer()
        await repository.answer()
        await repository.answer()
        assert repository.told() == ["load y", "unload y", "load x"]


def give_now(orders: Orders) -> None:
    orders.give(load("y"))
    orders.give(unload("y"))
    orders.give(unload("x"))
    orders.give(load("x"))


async def test_what_is_not_on_demand_is_left_alone() -> None:
    async with running() as (repository, orders):
        for number in range(10_000):
            orders.give(load(f"z{number}"))
        await give(orders, unload("echo"))
        assert repository.told() == []
        assert orders.details() == {"waiting": 0, "current": None}
