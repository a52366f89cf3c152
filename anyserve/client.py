"""A small Trio client of KServe v2: what the command line uses, and examples and tests may."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from anyserve_protos import codec
from anyserve_protos import inference as pb

from anyserve.capability import Attribute
from anyserve.errors import AnyServeError
from anyserve.infer_messages import decode_response, encode_request
from anyserve.messages import OutputValue, Result
from anyserve.stream_errors import unwrapped
from anyserve.transport.channel import Channel, ClientStream
from anyserve.transport.trio_client import open_channel

__all__ = [
    "Client",
    "InferStream",
    "Result",
    "decode_response",
    "encode_request",
    "open_client",
]

_SERVICE = "/inference.GRPCInferenceService"


class Client:
    """Calls one replica; see `open_client`. Deadlines are those of the caller's cancel scopes.

    Every method raises the `AnyServeError` that the replica answers with, and `Unavailable` when
    it can't be reached.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def infer(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        values: Mapping[str, Attribute] | None = None,
        *,
        request_id: str = "",
    ) -> Result:
        """One request, one response; outputs are numpy arrays."""
        request = encode_request(capability, inputs, values or {}, request_id)
        reply = await self._channel.unary(f"{_SERVICE}/ModelInfer", request, bytes)
        return decode_response(codec.decode(pb.ModelInferResponse, reply))

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[InferStream]:
        """A stream of requests; leaving the block cancels what has not been answered."""
        async with self._channel.stream(f"{_SERVICE}/ModelStreamInfer", bytes, bytes) as call:
            yield InferStream(call)

    async def generate(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        values: Mapping[str, Attribute] | None = None,
    ) -> AsyncGenerator[Result, None]:
        """The responses to one request as they come, the empty final one left out.

        Use it with `contextlib.aclosing`, so that leaving early cancels the request.
        """
        asked = {**(values or {}), "triton_enable_empty_final_response": True}
        async with self.stream() as stream:
            await stream.send(capability, inputs, asked)
            await stream.end()
            async for response in stream:
                if response.outputs:
                    yield response

    async def metadata(self, capability: str) -> pb.ModelMetadataResponse:
        """What a capability takes and gives."""
        reply: pb.ModelMetadataResponse = await self._call(
            "ModelMetadata", pb.ModelMetadataRequest(name=capability)
        )
        return reply

    async def ready(self) -> bool:
        """Whether the replica has loaded all it should."""
        reply: pb.ServerReadyResponse = await self._call("ServerReady", pb.ServerReadyRequest())
        return reply.ready

    async def capabilities(self) -> list[str]:
        """What the replica serves."""
        request = pb.RepositoryIndexRequest(ready=True)
        index: pb.RepositoryIndexResponse = await self._call("RepositoryIndex", request)
        return [model.name for model in index.models]

    async def _call(self, method: str, request: Any) -> Any:
        reply_type = getattr(pb, f"{method}Response")
        return await self._channel.unary(f"{_SERVICE}/{method}", request, reply_type)


class InferStream:
    """Requests one way, responses the other; they carry the requests' ids."""

    def __init__(self, call: ClientStream[bytes, bytes]) -> None:
        self._call = call

    async def send(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        values: Mapping[str, Attribute] | None = None,
        *,
        request_id: str = "",
    ) -> None:
        """Send a request; waits while the replica does not read."""
        await self._call.send(encode_request(capability, inputs, values or {}, request_id))

    async def end(self) -> None:
        """Send no more requests."""
        await self._call.end()

    def __aiter__(self) -> InferStream:
        return self

    async def __anext__(self) -> Result:
        """The next response; raises what a request failed with, after which others may come."""
        message = await self._call.recv()
        if message is None:
            raise StopAsyncIteration
        response = unwrapped(message)
        if isinstance(response, AnyServeError):
            raise response
        return decode_response(codec.decode(pb.ModelInferResponse, bytes(response)))


@asynccontextmanager
async def open_client(address: str) -> AsyncIterator[Client]:
    """A client of the replica at `host:port`; raises `InvalidArgument` for no such address."""
    async with open_channel(address) as channel:
        yield Client(channel)
