"""The live tree as values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import attrs
import trio
from anyserve_actors import (
    Actor,
    Backoff,
    ChildSpec,
    Context,
    Detail,
    Node,
    Policy,
    State,
    Supervisor,
    open_tree,
)
from trio.testing import MockClock, wait_all_tasks_blocked


class Picky(Actor[str]):
    """Fails of the message "bad" and sits on all others; its node says how many it got."""

    def __init__(self) -> None:
        self._messages = 0

    def details(self) -> Mapping[str, Detail]:
        return {"messages": self._messages}

    async def run(self, context: Context[str]) -> None:
        context.started()
        async for message in context.mailbox:
            self._messages += 1
            if message == "bad":
                raise ValueError("a bad message:\nover two lines")
            await trio.sleep_forever()


PICKY = ChildSpec("picky", Picky, capacity=3)
NO_JITTER = Policy(backoff=Backoff(initial=1, jitter=0))


def find(root: Node, path: str) -> Node:
    node = root.find(path)
    assert node is not None, path
    return node


async def test_the_tree_shows_every_actor_with_its_place(autojump_clock: MockClock) -> None:
    inner = ChildSpec("inner", lambda: Supervisor([PICKY]), shutdown_timeout=math.inf)
    async with open_tree("root", Supervisor([inner, PICKY])) as tree:
        await trio.sleep(5)
        root = tree.snapshot(trio.current_time())
    assert [(node.path, node.kind) for node in root.walk()] == [
        ("root", "Supervisor"),
        ("root/inner", "Supervisor"),
        ("root/inner/picky", "Picky"),
        ("root/picky", "Picky"),
    ]
    assert {node.state for node in root.walk()} == {State.RUNNING}
    assert {node.age for node in root.walk()} == {5.0}
    assert root.details == {"strategy": "one_for_one"}
    assert root.find("root/nobody") is None


async def test_the_tree_shows_a_restarted_child_with_its_last_error(
    autojump_clock: MockClock,
) -> None:
    supervisor = Supervisor([PICKY], NO_JITTER)
    async with open_tree("root", supervisor) as tree:
        await trio.sleep(5)
        await supervisor.address(PICKY).tell("bad")
        await trio.sleep(0.25)
        down = find(tree.snapshot(trio.current_time()), "root/picky")
        await trio.sleep(2)
        up = find(tree.snapshot(trio.current_time()), "root/picky")
    assert down == attrs.evolve(up, state=State.BACKING_OFF, age=0.25, restarts=0, details={})
    assert (up.state, up.age, up.restarts) == (State.RUNNING, 1.25, 1)
    assert up.last_error == "ValueError: a bad message: over two lines"


async def test_the_tree_shows_what_waits_in_mailboxes_and_what_actors_say_of_themselves() -> None:
    supervisor = Supervisor([PICKY])
    async with open_tree("root", supervisor) as tree:
        for _ in range(3):
            await supervisor.address(PICKY).tell("hm")
            await wait_all_tasks_blocked()
        node = find(tree.snapshot(trio.current_time()), "root/picky")
    assert (node.mailbox_depth, node.mailbox_capacity) == (2, 3)
    assert node.details == {"messages": 1}


async def test_the_tree_shows_what_still_starts_and_what_stops(autojump_clock: MockClock) -> None:
    class Slow(Actor[str]):
        async def run(self, context: Context[str]) -> None:
            await trio.sleep(2)
            context.started()
            await trio.sleep_forever()

        async def aclose(self) -> None:
            await trio.sleep(2)

    supervisor = Supervisor()
    async with open_tree("root", supervisor) as tree, trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.start_child, ChildSpec("slow", Slow))
        await trio.sleep(1)
        assert find(tree.snapshot(trio.current_time()), "root/slow").state is State.STARTING
        await trio.sleep(2)
        nursery.start_soon(supervisor.stop_child, "slow")
        await trio.sleep(1)
        assert find(tree.snapshot(trio.current_time()), "root/slow").state is State.STOPPING


async def test_a_long_error_and_a_group_of_errors_are_told_on_one_line(
    autojump_clock: MockClock,
) -> None:
    async def fail(error: Exception) -> None:
        raise error

    class Several(Actor[str]):
        async def run(self, context: Context[str]) -> None:
            context.started()
            await context.mailbox.receive()
            context.nursery.start_soon(fail, ValueError("one"))
            context.nursery.start_soon(fail, OSError("x" * 1000))
            await trio.lowlevel.cancel_shielded_checkpoint()

    spec = ChildSpec("several", Several)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor) as tree:
        await supervisor.address(spec).tell("go")
        await wait_all_tasks_blocked()
        error = find(tree.snapshot(trio.current_time()), "root/several").last_error
    assert error is not None
    assert "ValueError: one" in error
    assert "OSError: xxx" in error
    assert len(error) <= 300


async def test_a_snapshot_can_be_written_as_json() -> None:
    async with open_tree("root", Supervisor([PICKY])) as tree:
        text = json.dumps(attrs.asdict(tree.snapshot(trio.current_time())))
    assert json.loads(text)["children"][0]["state"] == "running"
