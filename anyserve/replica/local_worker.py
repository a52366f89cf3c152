"""The actor that runs an app in the replica's own process, where others have a worker link."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.app import App, AppError, load_app
from anyserve.replica.group import Group
from anyserve.replica.local import LocalExecutor
from anyserve.replica.worker_link import WorkerFailed
from anyserve.worker.loading import UNLOAD_TIMEOUT, cannot_load
from anyserve.worker.watchdog import Watchdog


class LocalWorker(Actor[None]):
    """Runs the app of a group, from its import to the clean-up of its lifespan.

    Ready when the app has loaded. Nothing stands between a handler and the replica: one that
    blocks the event loop holds up everything, and one that does not end when it is cancelled
    holds up the end of this actor.
    """

    def __init__(self, name: str, group: Group, watchdog: Watchdog) -> None:
        """watchdog: that of the loop, which somebody runs."""
        self._name = name
        self._group = group
        self._watchdog = watchdog
        self._executor: LocalExecutor | None = None

    def details(self) -> Mapping[str, Detail]:
        return {
            "app": self._group.spec.target,
            "running": 0 if self._executor is None else len(self._executor.running),
        }

    async def run(self, context: Context[None]) -> None:
        """Import the app, load it once something of it is wanted, and serve until cancelled.

        Importing blocks; loading takes as long as it takes. Cancelled, it takes no more calls,
        cancels those that run, and gives the lifespan `UNLOAD_TIMEOUT` to clean up. Raises
        `WorkerFailed` where the app can't be had or loaded, and what the lifespan raises later.
        """
        spec = self._group.spec
        try:
            app = load_app(spec.target, spec.options)
        except AppError as error:
            context.log.debug("import failed", exc_info=True)
            raise self._failed(str(error)) from None
        self._group.on_declared(app.offers)
        await self._group.wanted_event.wait()
        try:
            await self._live(app, context)
        except Exception as error:
            if self._executor is not None:
                raise
            context.log.debug("loading failed", exc_info=True)
            raise self._failed(cannot_load(f"worker {self._name}", error)) from None

    def _failed(self, reason: str) -> WorkerFailed:
        self._group.on_failed(reason)
        return WorkerFailed(reason)

    async def _live(self, app: App, context: Context[None]) -> None:
        """Run the lifespan, and the handlers in it."""
        stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_of_cancel, stopping)
            with trio.CancelScope() as life:
                async with app.running():
                    # From here on the lifespan is not cancelled with this actor: it cleans up.
                    life.shield = True
                    await self._serve(app, stopping, context)
                    life.deadline = trio.current_time() + UNLOAD_TIMEOUT
            if life.cancelled_caught:
                context.log.error("the lifespan's clean-up was cut off after %g s", UNLOAD_TIMEOUT)
            nursery.cancel_scope.cancel()

    async def _serve(self, app: App, stopping: trio.Event, context: Context[None]) -> None:
        """Run calls until `stopping`, and until those that were cancelled then have ended."""
        handlers = app.handlers
        offers = [handler.offer for handler in handlers]
        async with trio.open_nursery() as nursery:
            executor = self._executor = LocalExecutor(
                app, nursery, self._group.dispatcher, self._name
            )
            self._group.on_ready(executor, offers)
            app.watch(lambda name, now: self._group.on_condition(executor, name, now))
            names = ", ".join(str(offer.capability) for offer in offers)
            context.log.info("ready in the replica's process: %s", names)
            context.started()
            reason = f"worker {self._name} has failed"
            try:
                with self._watchdog.watching(handlers, lambda: executor.running):
                    await stopping.wait()
                reason = f"worker {self._name} is stopping"
            finally:
                self._group.on_down(executor, reason)
                nursery.cancel_scope.cancel()


async def _tell_of_cancel(stopping: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stopping.set()
