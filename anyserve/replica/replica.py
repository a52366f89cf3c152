"""The replica: its tree of actors, from start to drain."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio
from anyserve_actors import (
    Actor,
    ChildSpec,
    Context,
    Detail,
    Node,
    Policy,
    Supervisor,
    Tree,
)

from anyserve.admin.service import About, AdminService, admin_listener
from anyserve.burst import each_turn
from anyserve.http.settings import HttpConfig
from anyserve.objects.arena import Arena
from anyserve.objects.regions import Regions
from anyserve.objects.segments import new_prefix, sweep
from anyserve.replica.calls import HandlerRequests
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.handback import Handback
from anyserve.replica.inference import Inference
from anyserve.replica.orders import Orders
from anyserve.replica.pool import State
from anyserve.replica.reports import standing
from anyserve.replica.repository import Plan, Repository
from anyserve.replica.scheduler_link import LinkConfig, SchedulerLink, ignore
from anyserve.replica.service import SERVICE, InferenceService
from anyserve.replica.worker_link import Patience
from anyserve.transport.address import Address, TcpAddress
from anyserve.transport.health import HealthService, HealthState
from anyserve.transport.listener import Listener
from anyserve.transport.reflection import ReflectionService
from anyserve.transport.rpc import Limits, Service
from anyserve.transport.trio_client import open_channel
from anyserve.transport.wires import WIRES, Serve, open_wire

if TYPE_CHECKING:
    from anyserve.http.server import HttpServer

DEFAULT_PORT = 8001
"""Triton's gRPC port."""


@attrs.frozen
class ReplicaConfig:
    """How a replica runs."""

    plan: Plan
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: one that is free."""
    server_name: str = "anyserve"
    transport: str = WIRES[0]
    """One of `WIRES`."""
    limits: Limits = attrs.field(factory=Limits)
    drain_timeout: float = 30.0
    """Seconds that requests in flight have to end once the replica is told to stop."""
    patience: Patience = attrs.field(factory=Patience)
    client_shared_memory: bool = True
    """Whether clients may register their own shared memory."""
    link: LinkConfig | None = None
    """The scheduler to register with; None: the replica runs alone."""
    http: HttpConfig | None = None
    """Where HTTP is served; None: it is not."""
    otlp: str | None = None
    """The URL that spans of requests are sent to; None: they are not."""


class ObjectPlane(Actor[None]):
    """Owns the shared memory for requests and what clients register; leaves none behind."""

    def __init__(self) -> None:
        self.arena = Arena(prefix=new_prefix())
        self.regions = Regions()

    async def run(self, context: Context[None]) -> None:
        """Sweep what dead replicas left, then keep the arena until stopped."""
        removed = sweep()
        if removed:
            context.log.warning("removed %d segments of dead replicas", len(removed))
        context.started()
        await trio.sleep_forever()

    async def aclose(self) -> None:
        self.arena.close()
        self.regions.unregister_all()

    def details(self) -> Mapping[str, Detail]:
        statistics = self.arena.statistics()
        return {
            "leases": statistics.leases,
            "bytes_used": statistics.used,
            "segments": statistics.segments,
            "regions": len(self.regions.status()),
        }


class Replica:
    """A replica: made at once, it serves inside `async with replica.running()`."""

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._serve: Serve
        self._objects = ObjectPlane()
        self._workers = Supervisor()
        self._health = HealthState()
        self._draining = False
        self.link: SchedulerLink | None = None
        """That to its scheduler; None where it runs alone."""
        self._orders: Orders | None = None
        self.dispatcher = Dispatcher(on_change=self._changed, is_timed=config.http is not None)
        self.repository = Repository(
            config.plan,
            self.dispatcher,
            self._workers,
            self._objects.arena,
            patience=config.patience,
            unload_timeout=config.drain_timeout,
        )
        self.handback: Handback | None = None
        """What becomes of requests that can't be served here, where there is a scheduler."""
        if config.link is not None:
            self.handback = Handback(lambda: self.link, self.dispatcher.deadlines)
        self.dispatcher.calls = HandlerRequests(self.dispatcher, self.handback)
        self._repository_spec = ChildSpec("repository", lambda: self.repository)
        self._ingress: Listener | None = None
        self._http: HttpServer | None = None
        # None of these restarts alone: what they hold belongs together, so that a failure of one
        # ends the replica and whoever started it starts a new one.
        self._root = Supervisor(
            [
                *([ChildSpec("otlp", self._new_otlp)] if config.otlp else []),
                ChildSpec("objects", lambda: self._objects),
                ChildSpec("dispatcher", lambda: self.dispatcher),
                ChildSpec("workers", lambda: self._workers, shutdown_timeout=math.inf),
                ChildSpec("ingress", self._new_ingress),
                *([ChildSpec("http", self._new_http)] if config.http else []),
                ChildSpec("admin", self._new_admin),
                self._repository_spec,
                *self._scheduler_specs(),
            ],
            Policy(max_restarts=0),
        )
        self._tree = Tree("replica", self._root)
        regions = self._objects.regions
        self._inference = Inference(
            self.dispatcher, regions, config.limits.max_message_bytes, self.handback
        )
        self._service = InferenceService(
            server_name=config.server_name,
            dispatcher=self.dispatcher,
            inference=self._inference,
            regions=regions,
            client_shared_memory=config.client_shared_memory,
            repository=self._root.address(self._repository_spec),
            is_ready=self._is_ready,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the time of the block, which begins when everything has loaded.

        Loading takes as long as it takes; the caller's scope bounds it. Raises `StartError` and
        `CannotListen` when it can't start, and what failed when it can't go on, which also cancels
        the block. Leaving the block ends the workers, each within some seconds.
        """
        async with open_wire(self._config.transport) as self._serve, self._tree.running():
            self._changed()
            with each_turn():
                yield

    @property
    def address(self) -> TcpAddress:
        """Where clients reach it; the port is the real one."""
        assert self._ingress is not None
        assert self._ingress.server is not None
        address = self._ingress.server.address
        assert isinstance(address, TcpAddress)
        return address

    @property
    def http_address(self) -> Address | None:
        """Where HTTP is served, where it is; the port is the real one."""
        return None if self._http is None else self._http.address

    def snapshot(self, now: float) -> Node:
        """Its actors as they are at `now`."""
        return self._tree.snapshot(now)

    async def drain(self) -> None:
        """Take no more requests and wait for those in flight, for the drain timeout at most.

        It goes on listening, so that whoever asks hears that it drains. Those who watch its health
        are let go in the end.
        """
        assert self._ingress is not None
        assert self._ingress.server is not None
        self._draining = True
        self._changed()
        if self._http is not None:
            self._http.leave()
        with trio.move_on_after(self._config.drain_timeout):
            await self.dispatcher.drain()
            self._health.end()
            await self._ingress.server.drain()  # answers that are still being read
            if self._http is not None:
                await self._http.drain()

    def kill_workers(self) -> None:
        """End every worker at once, with what it runs."""
        for link in self.repository.links.values():
            link.kill()

    def _is_ready(self) -> bool:
        return self.repository.started and not self._draining

    def _changed(self) -> None:
        """Let those know who are told what is served."""
        serving = self._is_ready()
        self._health.set("", serving)
        self._health.set(SERVICE, serving)
        for pool in self.dispatcher.pools:
            self._health.set(pool.offer.name, pool.serving and not self._draining)
        if self.link is not None:
            self.link.changed()

    def _new_ingress(self) -> Listener:
        config = self._config
        services: list[Service] = [self._service, HealthService(self._health)]
        services.append(ReflectionService([*services]))
        address = TcpAddress(config.host, config.port)
        self._ingress = Listener(self._serve, services, address, config.limits)
        return self._ingress

    def _new_http(self) -> HttpServer:
        # Only then, since a replica that speaks gRPC alone does without its libraries.
        from anyserve.http.site import http_server
        from anyserve.replica.console import ReplicaInside
        from anyserve.replica.http_backend import ReplicaBackend
        from anyserve.replica.metrics import ReplicaMetrics

        assert self._config.http is not None
        backend = ReplicaBackend(
            self.dispatcher, self._inference, self._service.ask, self._is_ready
        )
        metrics = ReplicaMetrics(
            self.dispatcher, self._objects.arena, self._workers, lambda: self.link
        )
        inside = ReplicaInside(self.dispatcher, self._about, lambda: self._draining, self.snapshot)
        self._http = http_server(self._config.http, backend, metrics.collect, inside)
        return self._http

    def _new_otlp(self) -> Actor[None]:
        from anyserve.otlp.exporting import Exporting

        assert self._config.otlp is not None
        return Exporting(self._config.otlp, "anyserve-replica")

    def _new_admin(self) -> Listener:
        links = self.repository.links
        service = AdminService(
            about=self._about, snapshot=self.snapshot, children=lambda: list(links.values())
        )
        return admin_listener(self._serve, service, self.address.port)

    def _about(self) -> About:
        id = "" if self.link is None else self.link.replica_id
        ready = [pool.offer for pool in self.dispatcher.pools if pool.state is State.READY]
        return About(
            name=f"replica {id}" if id else "replica",
            address=str(self.address),
            capabilities=[str(offer.capability) for offer in ready],
            replica_id=id,
        )

    def _scheduler_specs(self) -> list[ChildSpec[None]]:
        """What a replica has that is one of a fleet."""
        config = self._config
        if config.link is None:
            return []
        return [
            *([ChildSpec("orders", self._new_orders)] if config.plan.on_demand else []),
            ChildSpec("scheduler-link", self._new_link),
        ]

    def _new_orders(self) -> Orders:
        names = self._config.plan.on_demand
        self._orders = Orders(names, self._root.address(self._repository_spec))
        return self._orders

    def _new_link(self) -> SchedulerLink:
        config = self._config.link
        assert config is not None
        self.link = SchedulerLink(
            config.replica_id or f"{socket.gethostname()}-{self.address.port}",
            str(config.advertise or self.address),
            lambda: standing(self.dispatcher.pools, self._draining, trio.current_time()),
            lambda: open_channel(config.scheduler),
            ignore if self._orders is None else self._orders.give,
        )
        return self.link
