"""A scheduler in this process with links in memory, and one that is a process of its own."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from anyserve_actors import ChildSpec, Policy, Supervisor, Tree
from anyserve_protos.anyserve import v1 as pb
from anyserve_scheduler.demand import DemandTerms
from anyserve_scheduler.gateway.unserved import Unserved
from anyserve_scheduler.keeper import LeaseKeeper
from anyserve_scheduler.links import Links
from anyserve_scheduler.on_demand import OnDemand
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import PREFIX, Router
from anyserve_scheduler.service import SchedulerService
from anyserve_scheduler.watched import WatchedRegistry
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Unavailable
from anyserve.load import Load
from anyserve.offers import Offer
from anyserve.replica.orders import Order
from anyserve.replica.reports import OnDemand as OnDemandStanding
from anyserve.replica.reports import Standing
from anyserve.replica.scheduler_link import SchedulerLink
from anyserve.transport.channel import Channel

ROOT = Path(__file__).parents[2]
HTTP = re.compile(r"^HTTP on (\S+)$", re.MULTILINE)
READY = re.compile(r"scheduler ready on (\S+:(\d+))$", re.MULTILINE)


class SchedulersEnd:
    """One `Attach` in memory, as the scheduler's handler sees it."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> SchedulersEnd:
        return self

    async def __anext__(self) -> pb.FromReplica:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    async def recv_message(self) -> pb.FromReplica | None:
        try:
            return await self._call.from_replica.receive()
        except trio.EndOfChannel:
            return None

    async def send_message(self, message: pb.ToReplica) -> None:
        if not self._call.desk.loses(message):
            await self._call.to_replica.send(pb.ToReplica.parse(bytes(message)))


class Call:
    """One `Attach` in memory, as the replica's link sees it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.error: AnyServeError | None = None
        self._up, self.from_replica = trio.open_memory_channel[pb.FromReplica](64)
        self.to_replica, self._down = trio.open_memory_channel[pb.ToReplica](64)

    async def serve(self, service: SchedulerService) -> None:
        """Run the scheduler's handler, as a transport does."""
        try:
            with self.scope:
                await service.attach(cast(Any, SchedulersEnd(self)))
            if self.scope.cancelled_caught:
                self.error = Unavailable("connection lost")
        except AnyServeError as error:
            self.error = error
        finally:
            self.from_replica.close()
            self.to_replica.close()
            self.ended.set()

    async def send(self, message: pb.FromReplica) -> None:
        if not self.desk.loses(message):
            with suppress(trio.BrokenResourceError):
                await self._up.send(pb.FromReplica.parse(bytes(message)))

    async def recv(self) -> pb.ToReplica | None:
        try:
            return await self._down.receive()
        except trio.EndOfChannel:
            if self.error is not None:
                raise self.error from None
            return None

    async def __aiter__(self) -> AsyncIterator[pb.ToReplica]:
        while (message := await self.recv()) is not None:
            yield message


@attrs.define
class UnaryEnd:
    """A unary call in memory, as the scheduler's handler sees it."""

    request: Any
    reply: Any = None

    async def recv_message(self) -> Any:
        return self.request

    async def send_message(self, message: Any) -> None:
        self.reply = message


@attrs.define(eq=False)
class Desk:
    """A scheduler without sockets, and replicas' links to it. It can be away, and start again."""

    nursery: trio.Nursery
    terms: LeaseTerms = attrs.field(factory=LeaseTerms)
    loses: Callable[[Any], bool] = lambda message: False
    """Which messages are lost on their way, either way."""
    service: SchedulerService | None = None
    registry: WatchedRegistry = attrs.field(init=False)
    links: Links = attrs.field(init=False)
    unserved: Unserved = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around its actors."""
    calls: list[Call] = attrs.field(factory=list)
    attempts: list[float] = attrs.field(factory=list)
    """When replicas tried to attach."""
    _started: int = 0

    def start(self) -> None:
        """A new scheduler, which knows nothing."""
        self._started += 1
        self.registry = WatchedRegistry(MemoryRegistry(self.terms, next_epoch=1000 * self._started))
        self.links = Links(self.registry)
        router = Router(PREFIX, random.Random(1))
        self.registry.follow(router.follow)
        self.service = SchedulerService(self.registry, self.links, router, self.terms)
        self.unserved = Unserved(self.registry)
        keeper = LeaseKeeper(self.registry, self.terms)
        on_demand = OnDemand(
            self.registry, self.links, self.unserved, DemandTerms(), self.terms.interval
        )
        children = [
            ChildSpec("leases", lambda: keeper),
            ChildSpec("on-demand", lambda: on_demand),
        ]
        self.nursery.start_soon(self._run, Tree("scheduler", Supervisor(children)))

    def kill(self) -> None:
        """The scheduler is gone, without a word."""
        self.service = None
        self.scope.cancel()
        for call in self.calls:
            call.scope.cancel()

    async def _run(self, tree: Tree) -> None:
        with trio.CancelScope() as self.scope:
            async with tree.running():
                await trio.sleep_forever()

    def call(self) -> Call:
        """A new `Attach`."""
        if self.service is None:
            raise Unavailable("connection refused")
        call = Call(self)
        self.calls.append(call)
        self.nursery.start_soon(call.serve, self.service)
        return call

    @asynccontextmanager
    async def open_channel(self) -> AsyncIterator[Channel]:
        yield cast(Channel, self)

    @asynccontextmanager
    async def stream(self, *arguments: Any) -> AsyncIterator[Call]:
        self.attempts.append(trio.current_time())
        call = self.call()
        try:
            yield call
        finally:
            call.scope.cancel()

    async def unary(self, path: str, request: Any, reply_type: Any) -> Any:
        if self.service is None:
            raise Unavailable("connection refused")
        if self.loses(request):
            await trio.sleep_forever()
        stream = UnaryEnd(request)
        await self.service.__mapping__()[path].func(cast(Any, stream))
        return stream.reply

    def names(self) -> dict[str, list[str]]:
        """What each replica of the fleet offers."""
        return {id: sorted(view.offers) for id, view in self.registry.fleet().replicas.items()}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A scheduler that runs; its tests take a clock that jumps."""
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        desk.start()
        yield desk
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class FakeReplica:
    """A replica as its link sees it: what it offers is what the test says."""

    id: str
    standing: Standing
    link: SchedulerLink = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    orders: list[tuple[float, Order]] = attrs.field(factory=list)
    """Those that have come, each with the time."""

    def order(self, order: Order) -> None:
        self.orders.append((trio.current_time(), order))

    def say(self, name: str, on_demand: OnDemandStanding) -> None:
        """Offer `name` on demand, which is so far."""
        now = self.standing
        loads = {name: Load(0, 0, 4, 0.0)} if on_demand.loaded else {}
        self.standing = attrs.evolve(
            now,
            offers={**now.offers, name: Offer(Capability(name))},
            loads={**{key: load for key, load in now.loads.items() if key != name}, **loads},
            on_demand={**now.on_demand, name: on_demand},
        )
        self.link.changed()

    def offer(self, *names: str, running: int = 0, draining: bool = False) -> None:
        """Offer these from now on."""
        self.standing = standing_of(*names, running=running, draining=draining)
        self.link.changed()

    async def run(self, desk: Desk) -> None:
        root = Supervisor([ChildSpec("scheduler-link", lambda: self.link)], Policy(max_restarts=0))
        with self.scope:
            async with Tree("replica", root).running():
                await trio.sleep_forever()
        self.ended.set()


def standing_of(*names: str, running: int = 0, draining: bool = False) -> Standing:
    return Standing(
        {name: Offer(Capability(name)) for name in names},
        {name: Load(running, 0, 4, 0.0) for name in names},
        draining,
    )


@pytest.fixture
def join(desk: Desk) -> Callable[..., FakeReplica]:
    """Starts replicas' links."""

    def start(id: str, *names: str) -> FakeReplica:
        fake = FakeReplica(id, standing_of(*names))
        fake.link = SchedulerLink(
            id, "127.0.0.1:8001", lambda: fake.standing, desk.open_channel, fake.order
        )
        desk.nursery.start_soon(fake.run, desk)
        return fake

    return start


# Processes.


@attrs.define
class LiveScheduler:
    """A scheduler process that serves."""

    process: subprocess.Popen[str]
    address: str
    port: int
    log: Path
    http: str = ""
    """Where it serves HTTP, with `--http`."""

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def running_scheduler(log: Path, *options: str) -> Iterator[LiveScheduler]:
    """Run `python -m anyserve_scheduler` with `options` until the block ends."""
    with log.open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "anyserve_scheduler", *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "apps")},
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
        )
    try:
        assert process.stdout is not None
        printed = ""
        while (match := READY.search(printed)) is None:
            line = process.stdout.readline()
            assert line, f"the scheduler did not start: {printed}{log.read_text()}"
            printed += line
        http = HTTP.search(printed)
        yield LiveScheduler(process, match[1], int(match[2]), log, http[1] if http else "")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def settled(eventually: Callable[..., Any]) -> Callable[[str], None]:
    """Waits until a scheduler has served for a lease, and says what is nowhere."""

    def wait(address: str) -> None:
        def knows() -> bool:
            try:
                client.get_model_metadata("nowhere")
            except InferenceServerException as error:
                return str(error.status()) == "StatusCode.NOT_FOUND"
            raise AssertionError

        with InferenceServerClient(address) as client:
            eventually(knows)

    return wait


SHORT_LEASE = ("--lease", "1.5", "--interval", "0.3")


@pytest.fixture
def start_scheduler(tmp_path: Path, transport: str) -> Iterator[Callable[..., LiveScheduler]]:
    """Start schedulers with short leases; they end with the test."""
    with ExitStack() as stack:
        started = iter(range(100))

        def start(port: int = 0, *more: str) -> LiveScheduler:
            log = tmp_path / f"scheduler-{next(started)}.log"
            options = ("--port", str(port), "--transport", transport, *SHORT_LEASE, *more)
            return stack.enter_context(running_scheduler(log, *options))

        yield start
