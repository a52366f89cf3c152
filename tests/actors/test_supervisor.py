"""Supervisors under the mock clock: who restarts, when, in which order, and when they give up."""

from __future__ import annotations

import contextvars
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
from anyserve_actors import (
    Actor,
    ActorError,
    ActorGone,
    Address,
    Backoff,
    ChildExists,
    ChildSpec,
    Context,
    NoSuchChild,
    Policy,
    Reply,
    Restart,
    RestartIntensityExceeded,
    State,
    Strategy,
    Supervisor,
    Tree,
    open_tree,
)
from trio.testing import MockClock, wait_all_tasks_blocked

EXACT = Backoff(initial=1.0, factor=2.0, maximum=8.0, jitter=0.0)


@attrs.frozen
class Fail:
    error: Exception


@attrs.frozen
class Finish:
    pass


@attrs.frozen
class WhichLife:
    reply: Reply[int]


Message = Fail | Finish | WhichLife


@attrs.define(eq=False)
class Stage:
    """Where scripted actors write down what happens to them."""

    events: list[tuple[float, str]] = attrs.Factory(list)
    lives: dict[str, int] = attrs.Factory(dict)
    start_failures: dict[str, int] = attrs.Factory(dict)
    """How many of a name's next starts are to fail."""
    seconds_to_start: dict[str, float] = attrs.Factory(dict)
    seconds_to_close: dict[str, float] = attrs.Factory(dict)

    def spec(
        self, name: str, restart: Restart = Restart.PERMANENT, capacity: int = 8
    ) -> ChildSpec[Message]:
        return ChildSpec(name, lambda: Scripted(self, name), restart, capacity)

    def note(self, event: str) -> None:
        self.events.append((trio.current_time(), event))

    def since_last_look(self) -> list[tuple[float, str]]:
        events, self.events = self.events, []
        return events


@attrs.define(eq=False)
class Scripted(Actor[Message]):
    stage: Stage
    name: str

    async def run(self, context: Context[Message]) -> None:
        stage, name = self.stage, self.name
        await trio.sleep(stage.seconds_to_start.get(name, 0.0))
        if stage.start_failures.get(name, 0):
            stage.start_failures[name] -= 1
            stage.note(f"{name} could not start")
            raise OSError(f"{name} can't start")
        life = stage.lives[name] = stage.lives.get(name, 0) + 1
        context.started()
        stage.note(f"+{name}")
        async for message in context.mailbox:
            match message:
                case Fail(error):
                    stage.note(f"{name} fails")
                    raise error
                case Finish():
                    stage.note(f"{name} finishes")
                    return
                case WhichLife(reply):
                    reply.set(life)

    async def aclose(self) -> None:
        await trio.sleep(self.stage.seconds_to_close.get(self.name, 0.0))
        self.stage.note(f"-{self.name}")


@attrs.frozen
class Running:
    stage: Stage
    supervisor: Supervisor
    tree: Tree

    def address(self, name: str) -> Address[Message]:
        return self.supervisor.address(self.stage.spec(name))

    def state(self, name: str) -> State | None:
        node = self.tree.snapshot(trio.current_time()).find(f"root/{name}")
        return None if node is None else node.state

    async def fail(self, name: str, message: str = "boom") -> None:
        await self.address(name).tell(Fail(ValueError(message)))

    async def settle(self) -> list[tuple[float, str]]:
        """What happened until now, when nothing happens without time passing."""
        await wait_all_tasks_blocked()
        return self.stage.since_last_look()


@asynccontextmanager
async def running(
    children: Sequence[ChildSpec[Message]], stage: Stage, policy: Policy
) -> AsyncIterator[Running]:
    supervisor = Supervisor(children, policy, jitter=lambda: 0.5)
    async with open_tree("root", supervisor) as tree:
        stage.since_last_look()
        yield Running(stage, supervisor, tree)


def policy(strategy: Strategy = Strategy.ONE_FOR_ONE, max_restarts: int = 5) -> Policy:
    return Policy(strategy, max_restarts, period=60.0, backoff=EXACT)


async def test_children_start_in_order_and_end_in_reverse_order(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(
        seconds_to_start={"a": 2, "b": 1}, seconds_to_close={"a": 0.5, "b": 1.5, "c": 1.0}
    )
    async with open_tree("root", Supervisor([stage.spec(name) for name in "abc"])):
        assert stage.since_last_look() == [(2, "+a"), (3, "+b"), (3, "+c")]
    assert stage.since_last_look() == [(4, "-c"), (5.5, "-b"), (6, "-a")]


async def test_a_failed_first_start_ends_what_had_started_and_is_not_tried_again(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(start_failures={"c": 1})
    with pytest.raises(OSError, match="c can't start"):
        async with open_tree("root", Supervisor([stage.spec(name) for name in "abcd"])):
            pytest.fail("the tree was opened")
    events = [event for _, event in stage.events]
    assert events == ["+a", "+b", "c could not start", "-c", "-b", "-a"]


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_child_that_fails_while_others_still_start_fails_the_start(
    autojump_clock: MockClock, strategy: Strategy
) -> None:
    stage = Stage(seconds_to_start={"b": 10})
    supervisor = Supervisor([stage.spec("a"), stage.spec("b")], policy(strategy))
    await supervisor.address(stage.spec("a")).tell(Fail(ValueError("early")))
    with pytest.raises(ValueError, match="early"):
        async with open_tree("root", supervisor):
            pytest.fail("the tree was opened")
    assert trio.current_time() == 0


async def test_a_failed_child_starts_again_after_its_delay(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy()) as tree:
        await tree.fail("a")
        assert await tree.settle() == [(0, "a fails"), (0, "-a")]
        assert tree.state("a") is State.BACKING_OFF
        assert await tree.address("a").ask(WhichLife) == 2
        assert await tree.settle() == [(1, "+a")]
        assert tree.state("a") is State.RUNNING


async def test_delays_grow_while_a_child_keeps_failing(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy()) as tree:
        for _ in range(5):
            await tree.fail("a")
        await trio.sleep(50)
    starts = [time for time, event in stage.events if event == "+a"]
    assert starts == [1, 3, 7, 15, 23]


async def test_a_start_that_fails_again_counts_as_one_more_failure(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy()) as tree:
        stage.start_failures["a"] = 2
        await tree.fail("a")
        assert await tree.address("a").ask(WhichLife) == 2
        starts = [(time, event) for time, event in await tree.settle() if "start" in event]
        assert starts == [(1, "a could not start"), (3, "a could not start")]
        assert trio.current_time() == 7


async def test_messages_wait_for_the_next_life_in_the_bounded_mailbox(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    async with running([stage.spec("a", capacity=1)], stage, policy()) as tree:
        address = tree.address("a")
        await tree.fail("a", "first")
        await tree.settle()
        await tree.fail("a", "second")  # waits in the mailbox
        with trio.move_on_after(0.5) as limit:
            await tree.fail("a", "no room")
        assert limit.cancelled_caught
        assert await address.ask(WhichLife) == 3


@pytest.mark.parametrize(
    "strategy, expected",
    [
        (Strategy.ONE_FOR_ONE, ["b fails", "-b", "+b"]),
        (Strategy.REST_FOR_ONE, ["b fails", "-b", "-d", "-c", "+b", "+c", "+d"]),
        (Strategy.ONE_FOR_ALL, ["b fails", "-b", "-d", "-c", "-a", "+a", "+b", "+c", "+d"]),
    ],
)
async def test_each_strategy_restarts_its_group_in_order(
    autojump_clock: MockClock, strategy: Strategy, expected: list[str]
) -> None:
    stage = Stage()
    async with running([stage.spec(name) for name in "abcd"], stage, policy(strategy)) as tree:
        await tree.fail("b")
        await trio.sleep(10)
        events = stage.since_last_look()
        assert [event for _, event in events] == expected
        assert {time for time, event in events if event.startswith("+")} == {1}
        assert {tree.state(name) for name in "abcd"} == {State.RUNNING}


async def test_a_group_takes_its_temporary_children_down_for_good(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    children = [stage.spec("a"), stage.spec("b", Restart.TEMPORARY), stage.spec("c")]
    async with running(children, stage, policy(Strategy.ONE_FOR_ALL)) as tree:
        temporary = tree.address("b")
        await tree.fail("c")
        await trio.sleep(10)
        events = [event for _, event in stage.since_last_look()]
        assert events == ["c fails", "-c", "-b", "-a", "+a", "+c"]
        assert tree.state("b") is None
        with pytest.raises(ActorGone):
            await temporary.tell(Finish())


@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("failed", [True, False])
async def test_a_childs_type_says_whether_it_starts_again(
    autojump_clock: MockClock, restart: Restart, failed: bool
) -> None:
    stage = Stage()
    async with running([stage.spec("a", restart)], stage, policy()) as tree:
        address = tree.address("a")
        await address.tell(Fail(ValueError("boom")) if failed else Finish())
        await trio.sleep(10)
        starts_again = restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and failed)
        assert stage.lives["a"] == (2 if starts_again else 1)
        if not starts_again:
            with pytest.raises(ActorGone):
                await address.ask(WhichLife)
        gone = restart is Restart.TEMPORARY
        assert tree.state("a") is (
            None if gone else State.RUNNING if starts_again else State.STOPPED
        )


async def test_a_transient_child_that_had_finished_starts_with_its_group(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    children = [stage.spec("a"), stage.spec("b", Restart.TRANSIENT)]
    async with running(children, stage, policy(Strategy.ONE_FOR_ALL)) as tree:
        address = tree.address("b")
        await address.tell(Finish())
        await tree.settle()
        await tree.fail("a")
        await trio.sleep(10)
        assert await address.ask(WhichLife) == 2


async def test_too_many_restarts_end_the_children_in_reverse_order_and_name_the_culprit(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    last = ValueError("the last straw")

    async def wear_out() -> None:
        children = [stage.spec(name) for name in "abc"]
        async with running(children, stage, policy(max_restarts=2)) as tree:
            for _ in range(2):
                await tree.fail("b")
            await tree.address("b").tell(Fail(last))
            await trio.sleep_forever()

    with pytest.raises(RestartIntensityExceeded) as caught:
        await wear_out()
    assert caught.value.child == "b"
    assert caught.value.__cause__ is last
    assert str(caught.value) == (
        "child 'b' ended with ValueError: the last straw, after 2 restarts in 60 s"
    )
    assert stage.events[-4:] == [(3, "b fails"), (3, "-b"), (3, "-c"), (3, "-a")]


async def test_restarts_older_than_the_period_do_not_count(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy(max_restarts=1)) as tree:
        for life in range(2, 6):
            await tree.fail("a")
            assert await tree.address("a").ask(WhichLife) == life
            await trio.sleep(61)


async def test_ending_a_tree_cancels_a_restart_that_waits(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a"), stage.spec("b")], stage, policy()) as tree:
        await tree.fail("b")
        await tree.settle()
    assert stage.events == [(0, "-a")]
    assert trio.current_time() == 0


async def test_ending_a_tree_cancels_a_restart_that_starts(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a"), stage.spec("b")], stage, policy()) as tree:
        stage.seconds_to_start["b"] = math.inf
        await tree.fail("b")
        await trio.sleep(5)
        assert tree.state("b") is State.STARTING
        stage.since_last_look()
    assert stage.events == [(5, "-b"), (5, "-a")]


async def test_cancelling_in_the_middle_of_a_stop_still_ends_all_in_order(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(seconds_to_close={"a": 1, "b": 1})
    with trio.CancelScope() as scope:
        async with running([stage.spec("a"), stage.spec("b")], stage, policy()):
            scope.deadline = trio.current_time() + 0.5  # falls into b's cleanup
    assert stage.events == [(1, "-b"), (2, "-a")]


async def test_a_later_failure_takes_over_the_restart_of_a_smaller_group(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    group = policy(Strategy.REST_FOR_ONE)
    async with running([stage.spec(name) for name in "abc"], stage, group) as tree:
        await tree.fail("b")  # b and c would start at 1
        await trio.sleep(0.5)
        await tree.fail("a")  # a, b and c start at 1.5
        await trio.sleep(10)
        starts = [(time, event) for time, event in stage.events if event.startswith("+")]
        assert starts == [(1.5, "+a"), (1.5, "+b"), (1.5, "+c")]


async def test_a_child_that_fails_while_its_group_starts_again_restarts_the_group_once_more(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    group = policy(Strategy.ONE_FOR_ALL)
    async with running([stage.spec(name) for name in "ab"], stage, group) as tree:
        stage.seconds_to_start["b"] = 5
        await tree.fail("a")
        await trio.sleep(3)  # a is up again, b is starting
        await tree.fail("a")
        await trio.sleep(20)
        events = [(time, event) for time, event in stage.events if time > 0]
        assert events == [(1, "+a"), (3, "a fails"), (3, "-a"), (3, "-b"), (5, "+a"), (10, "+b")]


async def test_a_child_is_started_on_a_live_supervisor(autojump_clock: MockClock) -> None:
    stage = Stage(seconds_to_start={"late": 3})
    async with running([stage.spec("a")], stage, policy()) as tree:
        late = await tree.supervisor.start_child(stage.spec("late"))
        assert trio.current_time() == 3
        await tree.fail("late")
        assert await late.ask(WhichLife) == 2
        with pytest.raises(ChildExists, match="'late'"):
            await tree.supervisor.start_child(stage.spec("late"))
        stage.since_last_look()
    assert [event for _, event in stage.events] == ["-late", "-a"]


async def test_a_child_that_cannot_start_on_a_live_supervisor_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(start_failures={"b": 1})
    async with running([stage.spec("a")], stage, policy()) as tree:
        with pytest.raises(OSError, match="b can't start"):
            await tree.supervisor.start_child(stage.spec("b"))
        assert tree.state("b") is None
        assert await (await tree.supervisor.start_child(stage.spec("b"))).ask(WhichLife) == 1
        assert stage.lives == {"a": 1, "b": 1}


async def test_cancelling_a_start_ends_and_forgets_the_child(autojump_clock: MockClock) -> None:
    stage = Stage(seconds_to_start={"b": math.inf})
    async with running([stage.spec("a")], stage, policy()) as tree:
        with trio.move_on_after(2):
            await tree.supervisor.start_child(stage.spec("b"))
        assert tree.state("b") is None
        assert await tree.settle() == [(2, "-b")]


async def test_ending_a_supervisor_ends_a_start_on_it(autojump_clock: MockClock) -> None:
    stage = Stage(seconds_to_start={"b": math.inf})

    async def start(supervisor: Supervisor) -> None:
        with pytest.raises(ActorGone, match="stopped before it was ready"):
            await supervisor.start_child(stage.spec("b"))
        with pytest.raises(ActorGone, match="does not run"):
            await supervisor.start_child(stage.spec("b"))

    async with (
        trio.open_nursery() as nursery,
        running([stage.spec("a")], stage, policy()) as tree,
    ):
        nursery.start_soon(start, tree.supervisor)
        await tree.settle()
    assert [event for _, event in stage.events] == ["-b", "-a"]


@pytest.mark.parametrize("when", ["running", "backing off", "starting again"])
async def test_a_stopped_child_is_gone(autojump_clock: MockClock, when: str) -> None:
    stage = Stage()
    async with running([stage.spec("a"), stage.spec("b")], stage, policy()) as tree:
        address = tree.address("b")
        if when != "running":
            stage.seconds_to_start["b"] = 10
            await tree.fail("b")
            await trio.sleep(0.5 if when == "backing off" else 5)
        await tree.supervisor.stop_child("b")
        assert tree.state("b") is None
        with pytest.raises(ActorGone):
            await address.tell(Finish())
        with pytest.raises(NoSuchChild, match="'b'"):
            await tree.supervisor.stop_child("b")
        await trio.sleep(50)
        assert stage.lives == {"a": 1, "b": 1}
        # The name is free again.
        stage.seconds_to_start.clear()
        assert await (await tree.supervisor.start_child(stage.spec("b"))).ask(WhichLife) == 2


async def test_cancelling_a_stop_does_not_keep_the_child(autojump_clock: MockClock) -> None:
    stage = Stage(seconds_to_close={"a": 2})
    async with running([stage.spec("a")], stage, policy()) as tree:
        with trio.move_on_after(1):
            await tree.supervisor.stop_child("a")
        assert tree.state("a") is State.STOPPING
        await trio.sleep(1.5)
        assert tree.state("a") is None


async def test_a_running_child_restarts_on_request(autojump_clock: MockClock) -> None:
    stage = Stage(seconds_to_start={"a": 1})
    async with running([stage.spec("a")], stage, policy(max_restarts=0)) as tree:
        await tree.supervisor.restart_child("a")
        assert await tree.address("a").ask(WhichLife) == 2
        assert stage.since_last_look() == [(1, "-a"), (2, "+a")]


async def test_a_restart_on_request_does_not_wait_for_a_delay(autojump_clock: MockClock) -> None:
    stage = Stage()
    group = policy(Strategy.ONE_FOR_ALL)
    async with running([stage.spec("a"), stage.spec("b")], stage, group) as tree:
        await tree.fail("a")
        await trio.sleep(0.25)
        stage.since_last_look()
        await tree.supervisor.restart_child("a")
        await trio.sleep(5)
        # The rest of the group keeps its own time, and nobody starts twice.
        assert stage.since_last_look() == [(0.25, "+a"), (1, "+b")]


async def test_a_failed_restart_on_request_is_raised_and_left_to_the_policy(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy()) as tree:
        stage.start_failures["a"] = 1
        with pytest.raises(OSError, match="a can't start"):
            await tree.supervisor.restart_child("a")
        assert await tree.address("a").ask(WhichLife) == 2
        assert trio.current_time() == 1


async def test_a_temporary_child_restarts_on_request(autojump_clock: MockClock) -> None:
    stage = Stage()
    async with running([stage.spec("a", Restart.TEMPORARY)], stage, policy()) as tree:
        await tree.supervisor.restart_child("a")
        assert await tree.address("a").ask(WhichLife) == 2


async def test_two_restarts_on_request_start_the_child_once_more_and_not_twice_at_a_time(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(seconds_to_close={"a": 1})
    async with running([stage.spec("a")], stage, policy()) as tree:
        async with trio.open_nursery() as nursery:

            async def superseded() -> None:
                with pytest.raises(Exception, match="another restart came first"):
                    await tree.supervisor.restart_child("a")

            nursery.start_soon(superseded)
            await wait_all_tasks_blocked()
            nursery.start_soon(tree.supervisor.restart_child, "a")
        assert stage.since_last_look() == [(1, "-a"), (1, "+a")]


async def test_a_supervisor_under_a_supervisor_escalates_and_is_started_anew(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    inner_supervisors: list[Supervisor] = []

    def inner() -> Supervisor:
        supervisor = Supervisor(
            [stage.spec("x"), stage.spec("y")], policy(max_restarts=0), jitter=lambda: 0.5
        )
        inner_supervisors.append(supervisor)
        return supervisor

    outer = Supervisor(
        [stage.spec("a"), ChildSpec("inner", inner, shutdown_timeout=math.inf)],
        policy(),
        jitter=lambda: 0.5,
    )
    async with open_tree("root", outer) as tree:
        stage.since_last_look()
        x = inner_supervisors[0].address(stage.spec("x"))
        await x.tell(Fail(ValueError("boom")))
        await trio.sleep(5)
        assert [event for _, event in stage.since_last_look()] == [
            "x fails",
            "-x",
            "-y",
            "+x",
            "+y",
        ]
        with pytest.raises(ActorGone):
            await x.tell(Finish())
        root = tree.snapshot(trio.current_time())
        node = root.find("root/inner")
        assert node is not None
        assert (node.restarts, node.last_error) == (
            1,
            "RestartIntensityExceeded: child 'x' ended with ValueError: boom, "
            "after 0 restarts in 60 s",
        )
        assert [child.path for child in node.children] == ["root/inner/x", "root/inner/y"]
    assert [event for _, event in stage.events] == ["-y", "-x", "-a"]


async def test_a_next_life_does_not_inherit_what_the_last_one_set_in_its_context(
    autojump_clock: MockClock,
) -> None:
    variable = contextvars.ContextVar("variable", default="clean")
    seen: list[str] = []

    class Dirty(Actor[Finish]):
        async def run(self, context: Context[Finish]) -> None:
            seen.append(variable.get())
            variable.set("dirty")
            context.started()
            await context.mailbox.receive()

    spec = ChildSpec("dirty", Dirty)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor):
        await supervisor.address(spec).tell(Finish())
        await trio.sleep(10)
    assert seen == ["clean", "clean"]


async def test_a_start_that_is_cancelled_just_before_the_child_is_ready_stays_cancelled(
    autojump_clock: MockClock,
) -> None:
    class Deaf(Actor[Finish]):
        async def run(self, context: Context[Finish]) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            context.started()
            await trio.sleep_forever()

    supervisor = Supervisor()
    async with open_tree("root", supervisor):
        with trio.move_on_after(1) as limit:
            await supervisor.start_child(ChildSpec("deaf", Deaf))
        assert limit.cancelled_caught
        assert trio.current_time() == 2
        assert supervisor.children("", 2) == ()


async def test_a_child_that_fails_while_its_group_is_taken_down_just_restarts_with_it(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(seconds_to_close={"c": 2})
    group = policy(Strategy.ONE_FOR_ALL, max_restarts=1)
    async with running([stage.spec(name) for name in "abc"], stage, group) as tree:
        await tree.fail("a")
        await trio.sleep(1)
        await tree.fail("b")
        await tree.settle()
        assert tree.state("b") is State.BACKING_OFF
        await trio.sleep(10)
        events = [(time, event) for time, event in stage.events if time > 1]
        assert events == [(2, "-c"), (3, "+a"), (3, "+b"), (3, "+c")]


async def test_a_child_that_starts_again_restarts_on_request_without_counting_as_failed(
    autojump_clock: MockClock,
) -> None:
    stage = Stage()
    async with running([stage.spec("a")], stage, policy(max_restarts=1)) as tree:
        stage.seconds_to_start["a"] = 10
        await tree.fail("a")
        await trio.sleep(5)
        # Which of two restarts runs first is up to Trio, so this happens several times.
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                with suppress(ActorError):  # the next one comes first
                    await tree.supervisor.restart_child("a")

            for _ in range(12):
                nursery.start_soon(restart)
                await trio.sleep(1)
                assert tree.state("a") is State.STARTING
        assert tree.state("a") is State.RUNNING
        assert await tree.address("a").ask(WhichLife) == 2


async def test_a_restart_on_request_ends_with_the_supervisor(autojump_clock: MockClock) -> None:
    stage = Stage()

    async def restart(supervisor: Supervisor) -> None:
        with pytest.raises(ActorGone, match="supervisor 'root' ended"):
            await supervisor.restart_child("a")

    async with (
        trio.open_nursery() as nursery,
        running([stage.spec("a")], stage, policy()) as tree,
    ):
        stage.seconds_to_start["a"] = math.inf
        nursery.start_soon(restart, tree.supervisor)
        await trio.sleep(1)


@pytest.mark.parametrize("name, lives", [("a", {"b": 1}), ("b", {"a": 1})])
async def test_a_child_can_be_stopped_while_its_supervisor_starts(
    autojump_clock: MockClock, name: str, lives: dict[str, int]
) -> None:
    stage = Stage(seconds_to_start={"a": 5})
    supervisor = Supervisor([stage.spec("a"), stage.spec("b")])

    async def stop() -> None:
        await trio.sleep(1)
        await supervisor.stop_child(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        async with open_tree("root", supervisor):
            assert stage.lives == lives


async def test_children_that_load_long_start_side_by_side_on_a_live_supervisor(
    autojump_clock: MockClock,
) -> None:
    stage = Stage(seconds_to_start={"slow": 30, "slower": 40})
    async with running([stage.spec("a")], stage, policy()) as tree:
        async with trio.open_nursery() as nursery:
            for name in ("slower", "slow"):
                nursery.start_soon(tree.supervisor.start_child, stage.spec(name))
            await trio.sleep(1)
            await tree.fail("a")  # its restart waits for nobody
        assert stage.since_last_look() == [
            (1, "a fails"),
            (1, "-a"),
            (2, "+a"),
            (30, "+slow"),
            (40, "+slower"),
        ]
