"""One actor from its start to the end of its cleanup, under a supervisor or as the root."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Never

import attrs
import pytest
import trio
from anyserve_actors import (
    Actor,
    ActorError,
    ActorGone,
    ChildSpec,
    Context,
    Reply,
    Supervisor,
    open_tree,
)
from trio.testing import MockClock, wait_all_tasks_blocked


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
                    total += amount
                case Get(reply):
                    reply.set(total)


@attrs.define(eq=False)
class Plain(Actor[Never]):
    """An actor whose parts are given."""

    body: Callable[[Context[Never]], object] = lambda context: None
    seconds_to_start: float = 0.0
    seconds_to_close: float = 0.0
    events: list[str] = attrs.Factory(list)

    async def run(self, context: Context[Never]) -> None:
        try:
            await trio.sleep(self.seconds_to_start)
            self.body(context)
            context.started()
            self.events.append("ready")
            await trio.sleep_forever()
        finally:
            self.events.append("run ended")

    async def aclose(self) -> None:
        try:
            await trio.sleep(self.seconds_to_close)
            self.events.append("closed")
        except trio.Cancelled:
            self.events.append("close cut off")
            raise


def alone(factory: Callable[[], Actor[Never]], shutdown_timeout: float = 5.0) -> Supervisor:
    return Supervisor([ChildSpec("only", factory, shutdown_timeout=shutdown_timeout)])


async def test_an_actor_answers_from_the_state_it_was_told() -> None:
    spec = ChildSpec("counter", Counter)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor):
        counter = supervisor.address(spec)
        for amount in range(5):
            await counter.tell(Add(amount))
        total = await counter.ask(Get)
        assert total == 10


async def test_an_ask_is_bounded_by_the_callers_deadline(autojump_clock: MockClock) -> None:
    class Deaf(Actor[Get]):
        async def run(self, context: Context[Get]) -> None:
            context.started()
            await trio.sleep_forever()

    spec = ChildSpec("deaf", Deaf)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor):
        before = trio.current_time()
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await supervisor.address(spec).ask(Get)
        assert trio.current_time() - before == 2


async def test_a_tree_is_open_when_its_actors_are_ready(autojump_clock: MockClock) -> None:
    actor = Plain(seconds_to_start=7)
    before = trio.current_time()
    async with open_tree("root", alone(lambda: actor)):
        assert trio.current_time() - before == 7
        assert actor.events == ["ready"]
    assert actor.events == ["ready", "run ended", "closed"]


async def test_a_server_without_messages_lives_as_long_as_its_tasks(
    autojump_clock: MockClock,
) -> None:
    class Server(Actor[Never]):
        async def run(self, context: Context[Never]) -> None:
            await context.nursery.start(self.serve)
            context.started()

        async def serve(self, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await trio.sleep(10)
            raise ConnectionError("the listener broke")

    with pytest.raises(ConnectionError, match="the listener broke"):
        async with open_tree("root", Server()):
            await trio.sleep_forever()
    assert trio.current_time() == 10


async def test_an_actor_that_fails_before_it_is_ready_fails_the_opening_as_itself() -> None:
    error = OSError("port in use")

    def fail(context: Context[Never]) -> None:
        raise error

    actor = Plain(fail)
    with pytest.raises(OSError, match="port in use") as caught:
        async with open_tree("root", alone(lambda: actor)):
            pytest.fail("the tree was opened")
    assert caught.value is error
    assert actor.events == ["run ended", "closed"]


async def test_a_factory_that_fails_fails_the_opening_as_itself() -> None:
    def factory() -> Actor[Never]:
        raise FileNotFoundError("no model")

    with pytest.raises(FileNotFoundError, match="no model"):
        async with open_tree("root", alone(factory)):
            pytest.fail("the tree was opened")


async def test_a_group_that_an_actor_raises_on_purpose_stays_a_group() -> None:
    def fail(context: Context[Never]) -> None:
        raise ExceptionGroup("two things", [ValueError("a"), KeyError("b")])

    with pytest.raises(ExceptionGroup, match="two things"):
        async with open_tree("root", alone(partial(Plain, fail))):
            pytest.fail("the tree was opened")


async def test_returning_before_being_ready_is_an_error() -> None:
    class Hasty(Actor[Never]):
        async def run(self, context: Context[Never]) -> None:
            return

    with pytest.raises(ActorError, match="actor 'only' returned before it was ready"):
        async with open_tree("root", alone(Hasty)):
            pytest.fail("the tree was opened")


async def test_an_error_of_the_block_ends_the_tree_and_comes_out_as_itself() -> None:
    actor = Plain()
    with pytest.raises(LookupError, match="mine"):
        async with open_tree("root", alone(lambda: actor)):
            raise LookupError("mine")
    assert actor.events == ["ready", "run ended", "closed"]


async def test_cancelling_the_opening_ends_what_was_starting(autojump_clock: MockClock) -> None:
    actor = Plain(seconds_to_start=math.inf, seconds_to_close=1)
    with trio.move_on_after(3):
        async with open_tree("root", alone(lambda: actor)):
            pytest.fail("the tree was opened")
    assert actor.events == ["run ended", "closed"]
    assert trio.current_time() == 4


async def test_cleanup_is_shielded_from_the_cancellation_that_ends_the_actor(
    autojump_clock: MockClock,
) -> None:
    actor = Plain(seconds_to_close=4.5)
    with trio.CancelScope() as scope:
        async with open_tree("root", alone(lambda: actor)):
            scope.cancel()
    assert actor.events == ["ready", "run ended", "closed"]
    assert trio.current_time() == 4.5


async def test_cleanup_is_cut_off_at_the_shutdown_timeout(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    actor = Plain(seconds_to_close=100)
    async with open_tree("root", alone(lambda: actor, shutdown_timeout=2)):
        pass
    assert actor.events == ["ready", "run ended", "close cut off"]
    assert trio.current_time() == 2
    assert "cleanup was cut off after 2 s" in caplog.text


async def test_a_failing_cleanup_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Clumsy(Plain):
        async def aclose(self) -> None:
            raise RuntimeError("could not close")

    async with open_tree("root", alone(Clumsy)):
        pass
    assert "could not close" in caplog.text


async def test_an_actor_that_ignores_cancellation_does_not_keep_its_siblings_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Actor[Never]):
        async def run(self, context: Context[Never]) -> None:
            context.started()
            with trio.CancelScope(shield=True):
                await trio.sleep(50)

    first = Plain()
    times: dict[str, float] = {}

    class Timed(Plain):
        async def aclose(self) -> None:
            times["closed"] = trio.current_time()

    specs = [ChildSpec("first", Timed), ChildSpec("last", Stubborn, shutdown_timeout=3)]
    async with open_tree("root", Supervisor(specs)):
        assert first.events == []
    assert times == {"closed": 3}
    assert trio.current_time() == 50  # no task is left behind, so the tree waits for it
    assert "child last has not ended 3 s after it was cancelled" in caplog.text


async def test_what_an_actor_started_ends_with_it(autojump_clock: MockClock) -> None:
    ended = trio.Event()

    async def helper() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    def start_helper(context: Context[Never]) -> None:
        context.nursery.start_soon(helper)

    async with open_tree("root", alone(lambda: Plain(start_helper))):
        await wait_all_tasks_blocked()
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_question_fails_at_once_when_its_actor_ends(autojump_clock: MockClock) -> None:
    class Dying(Actor[Get]):
        async def run(self, context: Context[Get]) -> None:
            context.started()
            await context.mailbox.receive()
            raise ValueError("died of a question")

    spec = ChildSpec("dying", Dying)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor):
        with pytest.raises(ActorGone, match="'dying' ended before it answered"):
            await supervisor.address(spec).ask(Get)
        assert trio.current_time() == 0


async def test_an_address_of_a_closed_tree_is_gone() -> None:
    spec = ChildSpec("counter", Counter)
    supervisor = Supervisor([spec])
    async with open_tree("root", supervisor):
        pass
    with pytest.raises(ActorGone):
        await supervisor.address(spec).tell(Add(1))


async def test_log_records_carry_the_actors_path(caplog: pytest.LogCaptureFixture) -> None:
    def say(context: Context[Never]) -> None:
        context.log.info("hello", extra={"request_id": "r1"})

    with caplog.at_level(logging.INFO):
        async with open_tree("root", alone(partial(Plain, say))):
            pass
    (record,) = [record for record in caplog.records if record.message == "hello"]
    assert (record.__dict__["actor"], record.__dict__["request_id"]) == ("root/only", "r1")
    assert record.name == __name__
