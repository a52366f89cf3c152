"""An actor that serves gRPC services on one address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import trio
from anyserve_actors import Actor, Context, Detail

from anyserve.transport.address import Address
from anyserve.transport.rpc import Limits, Service
from anyserve.transport.server import Server
from anyserve.transport.wires import Serve


class Listener(Actor[None]):
    """Serves gRPC services on one address."""

    def __init__(
        self, serve: Serve, services: Sequence[Service], address: Address, limits: Limits
    ) -> None:
        self._serve = serve
        self._services = services
        self._address = address
        self._limits = limits
        self.server: Server | None = None
        """Set while it serves."""

    async def run(self, context: Context[None]) -> None:
        """Serve until stopped; raises `CannotListen` when the address is taken."""
        self.server = await context.nursery.start(
            partial(self._serve, self._services, self._address, limits=self._limits)
        )
        context.started()
        await trio.sleep_forever()

    def details(self) -> Mapping[str, Detail]:
        if self.server is None:
            return {}
        statistics = self.server.statistics()
        return {
            "address": str(self.server.address),
            "connections": statistics.connections,
            "calls": statistics.calls,
        }
