"""The actor that runs an app in the replica's process: its life, and the end of its calls."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType

import attrs
import pytest
import trio
from anyserve_actors import ChildSpec, Supervisor, Tree
from anyserve_protos.infer_wire import scan_request
from trio.testing import MockClock, wait_all_tasks_blocked

from anyserve import App, Context, Request, Response
from anyserve.capability import Capability
from anyserve.client import encode_request
from anyserve.errors import AnyServeError, FailedPrecondition
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Exchange, Reply, WorkerLost
from anyserve.replica.group import AppSpec, Group
from anyserve.replica.local_worker import LocalWorker
from anyserve.replica.pool import State
from anyserve.replica.worker_link import WorkerFailed
from anyserve.worker.loading import UNLOAD_TIMEOUT
from anyserve.worker.watchdog import Watchdog

Install = Callable[[App], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes an app importable as `in_memory:app`."""

    def install(app: App) -> None:
        module = ModuleType("in_memory")
        module.app = app  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "in_memory", module)

    return install


@attrs.define
class Running:
    """A worker under its supervisor."""

    group: Group
    dispatcher: Dispatcher
    supervisor: Supervisor

    async def start(self) -> None:
        """Wait until it is ready."""
        worker = ChildSpec("worker", lambda: LocalWorker("mine-0", self.group, Watchdog()))
        await self.supervisor.start_child(worker)

    async def stop(self) -> None:
        """Wait until it has ended."""
        await self.supervisor.stop_child("worker")


@asynccontextmanager
async def a_worker() -> AsyncIterator[Running]:
    """A worker for `in_memory:app`, of which all is wanted."""
    dispatcher = Dispatcher()
    group = Group(AppSpec("mine", "in_memory:app", in_process=True), dispatcher)
    group.wanted_event.set()
    supervisor = Supervisor()
    async with Tree("test", supervisor).running():
        yield Running(group, dispatcher, supervisor)


@attrs.define
class Heard:
    """What a listener was told."""

    replies: int = 0
    ends: list[AnyServeError | None] = attrs.field(factory=list)

    def on_reply(self, reply: Reply) -> None:
        self.replies += 1

    def on_tokens(self, more: int, prompt: int) -> None: ...

    def on_ended(self, batch: int, error: AnyServeError | None) -> None:
        self.ends.append(error)


def submit(running: Running, capability: str, listener: Heard) -> Exchange:
    """A call, straight to the executor."""
    pool = running.dispatcher.pool(capability)
    head = scan_request(encode_request(capability, {}, {}))
    call = Call(Capability(capability), head.head, head.raw)
    return pool.seats[0].executor.submit(call, pool.offer, listener)


def app_with(lifespan: Callable[[App], AsyncIterator[None]] | None = None) -> App:
    """An app with handlers that answer, hold, and clean up slowly."""
    app = App()
    if lifespan is not None:
        app.lifespan(lifespan)

    @app.capability("answer")
    async def answer(request: Request, context: Context) -> Response:
        return Response(outputs={"x": 1})

    @app.capability("slow_end")
    async def slow_end(request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            yield Response(outputs={"x": 1})
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

    return app


async def test_nothing_loads_before_something_is_wanted(install: Install) -> None:
    events = []

    async def lifespan(app: App) -> AsyncIterator[None]:
        events.append("loaded")
        yield
        events.append("unloaded")

    install(app_with(lifespan))
    async with a_worker() as running, trio.open_nursery() as nursery:
        running.group.wanted_event = trio.Event()
        nursery.start_soon(running.start)
        await wait_all_tasks_blocked()
        assert [offer.name for offer in await running.group.until_declared()] == [
            "answer",
            "slow_end",
        ]
        assert events == []
        running.group.want({"answer"})
        await running.group.until_ready()
        assert events == ["loaded"]
        assert running.dispatcher.pool("answer").state is State.READY
        await running.stop()
        assert events == ["loaded", "unloaded"]
        assert not running.dispatcher.pool("answer").seats


async def test_stopping_ends_calls_at_once_and_waits_for_their_handlers(
    install: Install, autojump_clock: MockClock
) -> None:
    install(app_with())
    async with a_worker() as running:
        await running.start()
        executor = running.dispatcher.pool("slow_end").seats[0].executor
        listener = Heard()
        submit(running, "slow_end", listener)
        await wait_all_tasks_blocked()
        assert (listener.replies, listener.ends) == (1, [])
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.stop)
            await wait_all_tasks_blocked()
            assert trio.current_time() == began
            (error,) = listener.ends
            assert isinstance(error, WorkerLost)
            assert error.message == "worker mine-0 is stopping"
            call = Call(Capability("answer"), b"")
            with pytest.raises(WorkerLost, match="is stopping"):
                executor.submit(call, running.group.declared[0], listener)  # type: ignore[index]
        assert trio.current_time() == began + 2
        assert (listener.replies, len(listener.ends)) == (1, 1)


async def test_a_cancelled_call_ends_when_its_handler_has(
    install: Install, autojump_clock: MockClock
) -> None:
    install(app_with())
    async with a_worker() as running:
        await running.start()
        listener = Heard()
        exchange = submit(running, "slow_end", listener)
        await wait_all_tasks_blocked()
        exchange.close()
        await wait_all_tasks_blocked()
        assert listener.ends == []
        await trio.sleep(3)
        (error,) = listener.ends
        assert str(error) == "the request was cancelled"


async def test_a_call_that_failed_leaves_nothing_to_the_garbage_collector(install: Install) -> None:
    app = App()

    @app.capability("refuse")
    async def refuse(request: Request, context: Context) -> Response:
        raise FailedPrecondition("not now")

    async def call() -> None:
        heard = Heard()
        submit(running, "refuse", heard)
        await wait_all_tasks_blocked()
        assert len(heard.ends) == 1
        heard.ends.clear()

    install(app)
    async with a_worker() as running:
        await running.start()
        await call()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await call()
            gc.collect()
            found = {kind.__name__ for kind in map(type, gc.garbage)}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert found.isdisjoint({"Request", "Context", "FailedPrecondition"})


async def test_a_lifespan_may_clean_up_for_some_seconds_and_no_longer(
    install: Install, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    events = []

    async def lifespan(app: App) -> AsyncIterator[None]:
        yield
        await trio.sleep(UNLOAD_TIMEOUT / 2)
        events.append("half")
        await trio.sleep_forever()

    install(app_with(lifespan))
    async with a_worker() as running:
        await running.start()
        began = trio.current_time()
        await running.stop()
        assert trio.current_time() == pytest.approx(began + UNLOAD_TIMEOUT)
    assert events == ["half"]
    assert "clean-up was cut off" in caplog.text


async def test_a_start_that_is_given_up_cancels_loading(install: Install) -> None:
    events = []

    async def lifespan(app: App) -> AsyncIterator[None]:
        try:
            await trio.sleep_forever()
        finally:
            events.append("cancelled")
        yield

    install(app_with(lifespan))
    async with a_worker() as running:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.start)
                await wait_all_tasks_blocked()
                scope.cancel()
    assert events == ["cancelled"]


async def test_an_app_that_cannot_load_fails_in_one_line(install: Install) -> None:
    async def lifespan(app: App) -> AsyncIterator[None]:
        raise OSError("weights.bin: no such file")
        yield

    install(app_with(lifespan))
    async with a_worker() as running:
        with pytest.raises(WorkerFailed) as caught:
            await running.start()
        assert str(caught.value) == (
            "worker mine-0 can't load its app: OSError: weights.bin: no such file"
        )
        assert running.dispatcher.pool("answer").reason == str(caught.value)
