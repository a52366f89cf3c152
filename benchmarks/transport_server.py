"""AnyServe's transport and nothing else: bytes come in and go out, unparsed, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import trio
from grpclib.const import Cardinality
from grpclib.const import Handler as Method

from anyserve import collector
from anyserve.transport import trio_server
from anyserve.transport.address import TcpAddress
from anyserve.transport.rpc import ServerStream
from anyserve.transport.server import Server
from benchmarks import prepared
from benchmarks.prepared import INFER, STREAM_INFER

_PREPARED = prepared.stream()


class _Service:
    async def infer(self, stream: ServerStream) -> None:
        """The request itself."""
        await stream.send_message(await stream.recv_message())

    async def stream_infer(self, stream: ServerStream) -> None:
        """A prepared stream for each request."""
        async for _ in stream:
            for message in _PREPARED:
                await stream.send_message(message)

    def __mapping__(self) -> Mapping[str, Method]:
        return {
            INFER: Method(self.infer, Cardinality.UNARY_UNARY, bytes, bytes),
            STREAM_INFER: Method(self.stream_infer, Cardinality.STREAM_STREAM, bytes, bytes),
        }


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(trio_server.serve, [_Service()], TcpAddress("127.0.0.1", 0))
        server: Server = await nursery.start(serve)
        collector.settle()
        print(f"ready on {server.address}", flush=True)


if __name__ == "__main__":
    trio.run(_main)
