"""A counter as an actor: state that only its own task touches, kept up by a supervisor.

python examples/actors_counter.py
"""

from __future__ import annotations

import attrs
import trio
from anyserve_actors import (
    Actor,
    ActorGone,
    ChildSpec,
    Context,
    Reply,
    Supervisor,
    open_tree,
)


@attrs.frozen
class Add:
    amount: int


@attrs.frozen
class Get:
    reply: Reply[int]


class Counter(Actor[Add | Get]):
    async def run(self, context: Context[Add | Get]) -> None:
        total = 0
        context.started()
        async for message in context.mailbox:
            match message:
                case Add(amount):
                    if amount < 0:
                        raise ValueError(f"can't add {amount}")
                    total += amount
                case Get(reply):
                    reply.set(total)


COUNTER = ChildSpec("counter", Counter)


async def main() -> None:
    supervisor = Supervisor([COUNTER])
    async with open_tree("example", supervisor) as tree:
        counter = supervisor.address(COUNTER)
        for amount in (1, 2, 3):
            await counter.tell(Add(amount))
        total = await counter.ask(Get)
        print("total", total)

        # A failure takes the state with it. The address stays, and the next message waits until
        # the supervisor has started a new counter.
        await counter.tell(Add(-1))
        total = await counter.ask(Get)
        print("total after a failure", total)

        node = tree.snapshot(trio.current_time()).children[0]
        print(f"{node.path} is {node.state}, {node.restarts} restart, last error {node.last_error}")

    try:
        await counter.ask(Get)
    except ActorGone as gone:
        print(gone)


if __name__ == "__main__":
    trio.run(main)
