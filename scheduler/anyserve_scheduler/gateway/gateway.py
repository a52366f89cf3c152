"""The gateway: the actor that requests wait in on their way through the front door."""

from __future__ import annotations

from collections.abc import Mapping

from anyserve_actors import Actor, Context, Detail

from anyserve_scheduler.gateway.ways import Ways


class Gateway(Actor[None]):
    """Keeps the deadlines of what is on its way, and runs what of it has to wait."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways

    def details(self) -> Mapping[str, Detail]:
        ways = self._ways
        return {
            "in_flight": ways.in_flight,
            "retried": ways.retried,
            "delegated": ways.delegated,
            "resumed": ways.resumed,
            "waiting": len(ways.unserved),
        }

    async def run(self, context: Context[None]) -> None:
        """Keep deadlines, and what waits, until stopped."""
        self._ways.nursery = context.nursery
        context.nursery.start_soon(self._ways.unserved.run)
        context.started()
        await self._ways.deadlines.run()
