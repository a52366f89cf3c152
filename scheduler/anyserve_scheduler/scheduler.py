"""The scheduler: its tree of actors, from start to stop."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio
from anyserve_actors import Actor, ChildSpec, Node, Policy, Supervisor, Tree

from anyserve.admin.service import About, AdminService, admin_listener
from anyserve.burst import each_turn
from anyserve.errors import Unavailable
from anyserve.http.settings import HttpConfig
from anyserve.transport.address import Address, TcpAddress
from anyserve.transport.health import HealthService, HealthState
from anyserve.transport.listener import Listener
from anyserve.transport.reflection import ReflectionService
from anyserve.transport.rpc import Limits, Service
from anyserve.transport.wires import WIRES, Serve, open_wire
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.demand import DemandTerms
from anyserve_scheduler.gateway.gateway import Gateway
from anyserve_scheduler.gateway.service import GatewayService
from anyserve_scheduler.gateway.ways import LOAD_WAIT, Ways
from anyserve_scheduler.keeper import LeaseKeeper
from anyserve_scheduler.links import Links
from anyserve_scheduler.on_demand import OnDemand
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.registry import MemoryRegistry
from anyserve_scheduler.routing import PREFIX, Router
from anyserve_scheduler.service import SchedulerService
from anyserve_scheduler.watched import WatchedRegistry

if TYPE_CHECKING:
    from anyserve.http.server import HttpServer

DEFAULT_PORT = 8000


@attrs.frozen
class SchedulerConfig:
    """How a scheduler runs."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: one that is free."""
    transport: str = WIRES[0]
    """One of `WIRES`."""
    limits: Limits = attrs.field(factory=Limits)
    terms: LeaseTerms = attrs.field(factory=LeaseTerms)
    drain_timeout: float = 30.0
    """Seconds for what is in flight when it stops."""
    http: HttpConfig | None = None
    """Where HTTP is served; None: it is not."""
    otlp: str | None = None
    """The URL that spans of requests are sent to; None: they are not."""
    demand: DemandTerms = attrs.field(factory=DemandTerms)
    load_wait: float = LOAD_WAIT
    """Seconds that a request without a deadline waits for what is on demand; 0: none waits."""


class Scheduler:
    """A scheduler: made at once, it serves inside `async with scheduler.running()`."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._serve: Serve
        # No process that asks to resume an epoch got it from an earlier scheduler of this fleet
        # by chance: epochs go on from the clock's milliseconds, of which each registration is one.
        memory = MemoryRegistry(config.terms, next_epoch=int(time.time() * 1000))
        self.registry = WatchedRegistry(memory)
        """Who offers what."""
        self.links = Links(self.registry)
        """What else is known of each replica."""
        self.channels = Channels(self.registry, config.limits)
        """The way to each replica."""
        self.router = Router(PREFIX, random.Random())
        """Where requests go."""
        self.registry.follow(self.router.follow)
        self.ways = Ways(self.registry, self.links, self.channels, self.router, config.load_wait)
        """What is on its way through the front door."""
        self._health = HealthState()
        self._service = GatewayService(self.ways, self.channels)
        self._listener: Listener | None = None
        self._http: HttpServer | None = None
        # As in a replica, none of these restarts alone.
        self._root = Supervisor(
            [
                *([ChildSpec("otlp", self._new_otlp)] if config.otlp else []),
                ChildSpec("leases", lambda: LeaseKeeper(self.registry, config.terms)),
                ChildSpec("channels", lambda: self.channels),
                ChildSpec("gateway", lambda: Gateway(self.ways)),
                ChildSpec("on-demand", self._new_on_demand),
                ChildSpec("ingress", self._new_listener),
                *([ChildSpec("http", self._new_http)] if config.http else []),
                ChildSpec("admin", self._new_admin),
            ],
            Policy(max_restarts=0),
        )
        self._tree = Tree("scheduler", self._root)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the time of the block, which begins when it serves.

        Raises `CannotListen` when it can't start, and what failed when it can't go on, which also
        cancels the block. Leaving the block ends all calls with `Unavailable`.
        """
        async with open_wire(self._config.transport) as self._serve, self._tree.running():
            self.ways.complete_at = trio.current_time() + self._config.terms.lease
            self._health.set("", True)
            with each_turn():
                yield

    async def drain(self) -> None:
        """Take no more calls and wait for those in flight, for the drain timeout at most.

        Then replicas lose their links, and serve alone until they find the next scheduler. Not
        before: what they have handed over comes back by them.
        """
        assert self._listener is not None
        assert self._listener.server is not None
        self._health.set("", False)
        if self._http is not None:
            self._http.leave()
        with trio.move_on_after(self._config.drain_timeout):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listener.server.drain)
                await self.ways.intake.drain()
                if self._http is not None:
                    nursery.start_soon(self._http.drain)
                self._health.end()
                self.links.end(Unavailable("the scheduler is stopping"))

    @property
    def address(self) -> TcpAddress:
        """Where replicas and clients reach it; the port is the real one."""
        assert self._listener is not None
        assert self._listener.server is not None
        address = self._listener.server.address
        assert isinstance(address, TcpAddress)
        return address

    @property
    def http_address(self) -> Address | None:
        """Where HTTP is served, where it is; the port is the real one."""
        return None if self._http is None else self._http.address

    def snapshot(self, now: float) -> Node:
        """Its actors as they are at `now`."""
        return self._tree.snapshot(now)

    def _new_on_demand(self) -> OnDemand:
        config = self._config
        return OnDemand(
            self.registry, self.links, self.ways.unserved, config.demand, config.terms.interval
        )

    def _new_listener(self) -> Listener:
        config = self._config
        services: list[Service] = [
            SchedulerService(self.registry, self.links, self.router, config.terms),
            self._service,
            HealthService(self._health),
        ]
        services.append(ReflectionService([*services]))
        address = TcpAddress(config.host, config.port)
        self._listener = Listener(self._serve, services, address, config.limits)
        return self._listener

    def _new_http(self) -> HttpServer:
        # Only then, since a scheduler that speaks gRPC alone does without its libraries.
        from anyserve.http.site import http_server
        from anyserve_scheduler.gateway.console import SchedulerInside
        from anyserve_scheduler.gateway.http_backend import GatewayBackend
        from anyserve_scheduler.gateway.meter import Meter
        from anyserve_scheduler.gateway.metrics import SchedulerMetrics

        assert self._config.http is not None
        backend = GatewayBackend(self.ways, self._service)
        meter = self.ways.meter = Meter()
        metrics = SchedulerMetrics(self.ways, meter)
        inside = SchedulerInside(self.ways, lambda: str(self.address), self.snapshot)
        self._http = http_server(self._config.http, backend, metrics.collect, inside)
        return self._http

    def _new_otlp(self) -> Actor[None]:
        from anyserve.otlp.exporting import Exporting

        assert self._config.otlp is not None
        return Exporting(self._config.otlp, "anyserve-scheduler")

    def _new_admin(self) -> Listener:
        service = AdminService(about=self._about, snapshot=self.snapshot)
        return admin_listener(self._serve, service, self.address.port)

    def _about(self) -> About:
        replicas = self.registry.fleet().replicas
        return About(
            name="scheduler",
            address=str(self.address),
            fleet={id: view.address for id, view in replicas.items()},
        )
