"""The repository: which apps run, and capabilities loaded and unloaded at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio
from anyserve_actors import Actor, ChildSpec, Context, NoSuchChild, Reply, Supervisor

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Internal, first_of
from anyserve.objects.arena import Arena
from anyserve.offers import Offer
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.group import AppSpec, Group, LoadFailed
from anyserve.replica.pool import State
from anyserve.replica.process import EXIT_TIMEOUT
from anyserve.replica.worker_link import Patience, WorkerFailed, WorkerLink

if TYPE_CHECKING:
    from anyserve.worker.watchdog import Watchdog

NOT_LOADED = "it is on demand, and not loaded"


class StartError(Exception):
    """The replica can't start as it was asked to; the message is one line for people."""


@attrs.frozen
class LoadModel:
    """Serve the capability `name`; answered when it is ready, or with why it is not."""

    name: str
    reply: Reply[None]


@attrs.frozen
class UnloadModel:
    """Stop serving the capability `name`, when its requests have ended."""

    name: str
    reply: Reply[None]
    at_once: bool = True
    """Whether it is answered before that."""


@attrs.frozen
class Plan:
    """What a replica is asked to serve."""

    apps: Sequence[AppSpec]
    """The user's apps; all are imported, and loaded where something of them is wanted."""
    builtins: Mapping[str, AppSpec]
    """Capabilities that come with the package, each with its app; imported where wanted."""
    wanted: Sequence[str] | None
    """The capabilities to serve; None is all that `apps` declare, but those on demand."""
    on_demand: Sequence[str] = ()
    """Capabilities to load when the scheduler wants them, or a client."""


class Repository(Actor[LoadModel | UnloadModel]):
    """Starts apps, each with its workers under one supervisor, for the capabilities wanted."""

    _watchdog: Watchdog
    """Of this process's loop, where apps run on it."""

    def __init__(
        self,
        plan: Plan,
        dispatcher: Dispatcher,
        workers: Supervisor,
        arena: Arena,
        *,
        patience: Patience,
        unload_timeout: float,
    ) -> None:
        """unload_timeout: seconds that the requests of an unloaded capability have to end."""
        self._plan = plan
        self._dispatcher = dispatcher
        self._workers = workers
        self._arena = arena
        self._patience = patience
        self._unload_timeout = unload_timeout
        self._groups: list[Group] = []
        self.links: dict[str, WorkerLink] = {}
        """The links to worker processes by name, each the present one."""
        self.started = False
        """Whether all that was wanted at the start has loaded."""

    async def run(self, context: Context[LoadModel | UnloadModel]) -> None:
        """Load what is wanted, then load and unload as asked; raises `StartError`."""
        for name in self._plan.builtins:
            if name not in self._plan.on_demand:
                self._dispatcher.declare(Offer(Capability(name)))
        if any(spec.in_process for spec in self._plan.apps):
            # Only then, as below.
            from anyserve.worker.watchdog import Watchdog

            self._watchdog = Watchdog()
            context.nursery.start_soon(self._watchdog.run)
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                for spec in self._plan.apps:
                    nursery.start_soon(self._start, self._add_group(spec))
                for group in list(self._groups):
                    await group.until_declared()
                for group in self._choose():
                    nursery.start_soon(self._start, group)
                    if not group.wanted:
                        await group.until_declared()
                        group.starting.cancel()
                self._offer_on_demand()
        except* (WorkerFailed, LoadFailed, StartError) as errors:
            failure = first_of(errors)
        if failure is not None:
            raise StartError(str(failure))
        self.started = True
        context.started()
        async for message in context.mailbox:
            context.nursery.start_soon(self._handle, message)

    def _add_group(self, spec: AppSpec) -> Group:
        group = Group(spec, self._dispatcher)
        self._groups.append(group)
        return group

    def _choose(self) -> list[Group]:
        """Tell the apps what of them is wanted; the groups of built-in apps still to start.

        Those of which nothing is wanted are only to declare what is offered on demand.
        """
        declared = {offer.name for group in self._groups for offer in group.declared or ()}
        on_demand = set(self._plan.on_demand)
        wanted = declared - on_demand if self._plan.wanted is None else set(self._plan.wanted)
        known = declared | self._plan.builtins.keys()
        unknown = (wanted | on_demand) - known
        if unknown:
            raise StartError(
                f"unknown capability {', '.join(sorted(unknown))};"
                f" there is: {', '.join(sorted(known))}"
            )
        for name in wanted:
            self._dispatcher.set_state(name, State.LOADING, "it is loading")
        for group in self._groups:
            group.want({offer.name for offer in group.declared or ()} & wanted)
            if not group.wanted:
                group.starting.cancel()
        added = []
        for name in sorted((wanted | on_demand) - declared):
            group = self._add_group(self._plan.builtins[name])
            group.want({name} & wanted)
            added.append(group)
        return added

    def _offer_on_demand(self) -> None:
        """Let it be known what could be loaded, which has been declared."""
        for name in self._plan.on_demand:
            self._dispatcher.pool(name).on_demand = True
            self._dispatcher.set_state(name, State.UNAVAILABLE, NOT_LOADED)

    async def _start(self, group: Group) -> None:
        """Start the workers of an app and wait until all have loaded it.

        Raises, in a group, `WorkerFailed` when one fails; then none is left.
        """
        group.starting = trio.CancelScope()
        with group.starting:
            try:
                async with trio.open_nursery() as nursery:
                    for name in group.worker_names:
                        spec = ChildSpec(
                            name,
                            partial(self._new_worker, name, group),
                            shutdown_timeout=2 * EXIT_TIMEOUT,
                        )
                        nursery.start_soon(self._workers.start_child, spec)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._stop(group)
                raise

    def _new_worker(self, name: str, group: Group) -> Actor[None]:
        if group.spec.in_process:
            # Only then, since it brings numpy along, which a replica does without otherwise.
            from anyserve.replica.local_worker import LocalWorker

            return LocalWorker(name, group, self._watchdog)
        link = self.links[name] = WorkerLink(name, group, self._arena, self._patience)
        return link

    async def _stop(self, group: Group) -> None:
        """Stop the workers of an app; each is bounded by its child's shutdown timeout."""
        async with trio.open_nursery() as nursery:
            for name in group.worker_names:
                self.links.pop(name, None)
                nursery.start_soon(self._stop_worker, name)

    async def _stop_worker(self, name: str) -> None:
        with suppress(NoSuchChild):  # it never started, or failed to and has been forgotten
            await self._workers.stop_child(name)

    # Loads and unloads at run time.

    async def _handle(self, message: LoadModel | UnloadModel) -> None:
        try:
            group = self._group_of(message.name)
            async with group.changing:
                if isinstance(message, LoadModel):
                    await self._load(group, message.name)
                    message.reply.set(None)
                else:
                    await self._unload(group, message)
        except AnyServeError as error:
            message.reply.fail(error)

    def _group_of(self, name: str) -> Group:
        self._dispatcher.pool(name)
        for group in self._groups:
            if any(offer.name == name for offer in group.declared or ()):
                return group
        spec = self._plan.builtins[name]
        for group in self._groups:
            if group.spec is spec:  # it is being loaded for the first time
                return group
        return self._add_group(spec)

    async def _load(self, group: Group, name: str) -> None:
        if self._dispatcher.pool(name).state is State.READY:
            return
        was_wanted = set(group.wanted)
        group.want({*was_wanted, name})
        self._dispatcher.set_state(name, State.LOADING, "it is loading")
        failure: BaseException | None = None
        try:
            if was_wanted:
                await group.until_ready()
            else:
                await self._start(group)
        except* (WorkerFailed, LoadFailed) as errors:
            failure = first_of(errors)
        pool = self._dispatcher.pool(name)
        if failure is not None:
            group.want(was_wanted)
            pool.failures, pool.failure = pool.failures + 1, str(failure)
            self._dispatcher.set_state(name, State.UNAVAILABLE, str(failure))
            raise Internal(f"{name!r} could not be loaded: {failure}")
        pool.failures, pool.failure = 0, ""
        self._dispatcher.set_state(name, State.READY)

    async def _unload(self, group: Group, message: UnloadModel) -> None:
        name = message.name
        pool = self._dispatcher.pool(name)
        if pool.state is State.UNAVAILABLE:
            message.reply.set(None)
            return
        self._dispatcher.set_state(name, State.UNLOADING, "it is being unloaded")
        if message.at_once:
            message.reply.set(None)
        with trio.move_on_after(self._unload_timeout):
            await pool.until_idle()
        group.want(group.wanted - {name})
        if not group.wanted:
            await self._stop(group)
        self._dispatcher.set_state(name, State.UNAVAILABLE, "it was unloaded")
        message.reply.set(None)
