"""AnyServe's HTTP server and nothing else: a body comes in and goes out."""

from __future__ import annotations

import trio
from anyserve_actors import ChildSpec, Policy, Supervisor, Tree

from anyserve import collector
from anyserve.burst import each_turn
from anyserve.http.access import Access
from anyserve.http.exchange import Exchange
from anyserve.http.parser import HttpLimits
from anyserve.http.routes import Routes
from anyserve.http.server import HttpServer
from anyserve.transport.address import TcpAddress


def _echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.request.body)


async def serve(routes: Routes) -> None:
    """Serve on a free port, and say which; until cancelled."""
    server = HttpServer(routes, TcpAddress("127.0.0.1", 0), HttpLimits())
    root = Supervisor([ChildSpec("http", lambda: server)], Policy(max_restarts=0))
    async with Tree("benchmark", root).running():
        collector.settle()
        print(f"ready on {server.address}", flush=True)
        with each_turn():
            await trio.sleep_forever()


if __name__ == "__main__":
    routes = Routes(Access())
    routes.add("POST", "/echo", _echo)
    trio.run(serve, routes)
