"""The door of KServe v2's REST protocol: each path, and what it asks of the backend."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from anyserve_protos import inference as pb
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.http.backend import Backend
from anyserve.http.exchange import JSON, Exchange
from anyserve.http.kserve.answering import Events, Whole, begin
from anyserve.http.kserve.generate import read_generate, write_generated
from anyserve.http.kserve.inference import read_json, read_request, write_response
from anyserve.http.kserve.plain import plain
from anyserve.http.routes import Handler, Routes

_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_NOT_READY = 400
"""As the protocol has it: 4xx."""


_Int64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Index(msgspec.Struct):
    ready: bool = False


class _Load(msgspec.Struct):
    parameters: dict[str, bool | _Int64 | str] = {}


class _Register(msgspec.Struct):
    key: str
    byte_size: _Int64
    offset: _Int64 = 0


_index = msgspec.json.Decoder(_Index)
_load = msgspec.json.Decoder(_Load)
_register = msgspec.json.Decoder(_Register)


class KServe:
    """Answers the paths under `/v2`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def add_to(self, routes: Routes) -> None:
        """Serve them all."""
        add = routes.add
        add("GET", "/v2", self.server)
        add("GET", "/v2/health/live", self.live)
        add("GET", "/v2/health/ready", self.ready)
        add("GET", "/v2/models/stats", self.statistics)
        for path in (_MODEL, _VERSION):
            add("GET", path, self.model)
            add("GET", path + "/ready", self.model_ready)
            add("GET", path + "/config", self.config)
            add("GET", path + "/stats", self.statistics)
            add("POST", path + "/infer", self.infer)
            add("POST", path + "/generate", self.generate)
            add("POST", path + "/generate_stream", self.generate_stream)
        add("POST", "/v2/repository/index", self.index)
        add("POST", "/v2/repository/models/{model}/load", self.load)
        add("POST", "/v2/repository/models/{model}/unload", self.unload)
        for path, kind in (("systemsharedmemory", "System"), ("cudasharedmemory", "Cuda")):
            status, unregister = self._memory_status(kind), self._unregister(kind)
            add("GET", f"/v2/{path}/status", status)
            add("GET", f"/v2/{path}/region/{{region}}/status", status)
            add("POST", f"/v2/{path}/unregister", unregister)
            add("POST", f"/v2/{path}/region/{{region}}/unregister", unregister)
        add("POST", "/v2/systemsharedmemory/region/{region}/register", self.register)
        add("POST", "/v2/cudasharedmemory/region/{region}/register", self.register_cuda)

    # Inference.

    def infer(self, exchange: Exchange) -> None:
        """One request, exactly one response."""
        request, form = read_request(exchange.request, *_model(exchange))
        answers = Whole(exchange, lambda message: write_response(message, form))
        begin(exchange, self._backend, request, answers, once=True)

    async def generate(self, exchange: Exchange) -> None:
        """The same in flat JSON."""
        request = await self._generated(exchange)
        answers = Whole(exchange, lambda message: (write_generated(message), JSON, ()))
        begin(exchange, self._backend, request, answers, once=True)

    async def generate_stream(self, exchange: Exchange) -> None:
        """One request in flat JSON, and any number of responses as events."""
        request = await self._generated(exchange)
        begin(exchange, self._backend, request, Events(exchange, write_generated), once=False)

    async def _generated(self, exchange: Exchange) -> InferRequestHead:
        name, version = _model(exchange)
        request = pb.ModelMetadataRequest(name=name, version=version)
        model = await self._backend.call("ModelMetadata", request)
        return read_generate(exchange.request.body, model, version)

    # The server and its models.

    def live(self, exchange: Exchange) -> None:
        """Whether it answers, which it does."""
        exchange.respond(200, b"")

    def ready(self, exchange: Exchange) -> None:
        """Whether it takes requests."""
        exchange.respond(200 if self._backend.ready() else _NOT_READY, b"")

    async def server(self, exchange: Exchange) -> None:
        """Its name, version and extensions."""
        _respond(exchange, await self._backend.call("ServerMetadata", pb.ServerMetadataRequest()))

    async def model(self, exchange: Exchange) -> None:
        """What a model takes and gives."""
        name, version = _model(exchange)
        request = pb.ModelMetadataRequest(name=name, version=version)
        _respond(exchange, await self._backend.call("ModelMetadata", request))

    async def model_ready(self, exchange: Exchange) -> None:
        """Whether a model is served."""
        name, version = _model(exchange)
        request = pb.ModelReadyRequest(name=name, version=version)
        reply = await self._backend.call("ModelReady", request)
        exchange.respond(200 if reply.ready else _NOT_READY, b"")

    async def config(self, exchange: Exchange) -> None:
        """A model's configuration, as Triton has it."""
        name, version = _model(exchange)
        request = pb.ModelConfigRequest(name=name, version=version)
        reply = await self._backend.call("ModelConfig", request)
        _respond(exchange, reply.config)

    async def statistics(self, exchange: Exchange) -> None:
        """Those of a model, or of all."""
        name, version = _model(exchange)
        request = pb.ModelStatisticsRequest(name=name, version=version)
        reply = await self._backend.call("ModelStatistics", request)
        _respond(exchange, reply)

    # The repository.

    async def index(self, exchange: Exchange) -> None:
        """All models, and the state of each."""
        asked: _Index = _read(_index, exchange)
        request = pb.RepositoryIndexRequest(ready=asked.ready)
        reply = await self._backend.call("RepositoryIndex", request)
        _respond(exchange, reply.models)

    async def load(self, exchange: Exchange) -> None:
        """Load a model; waits until it is."""
        asked: _Load = _read(_load, exchange)
        request = pb.RepositoryModelLoadRequest(model_name=exchange.request.parameters["model"])
        request.parameters = {
            name: _model_parameter(value) for name, value in asked.parameters.items()
        }
        await self._backend.call("RepositoryModelLoad", request)
        exchange.respond(200, b"")

    async def unload(self, exchange: Exchange) -> None:
        """Unload a model, when its requests have ended."""
        name = exchange.request.parameters["model"]
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        await self._backend.call("RepositoryModelUnload", request)
        exchange.respond(200, b"")

    # Clients' shared memory.

    async def register(self, exchange: Exchange) -> None:
        """Register a region of system memory."""
        asked: _Register = _read(_register, exchange)
        request = pb.SystemSharedMemoryRegisterRequest(
            name=_region(exchange), key=asked.key, offset=asked.offset, byte_size=asked.byte_size
        )
        await self._backend.call("SystemSharedMemoryRegister", request)
        exchange.respond(200, b"")

    async def register_cuda(self, exchange: Exchange) -> None:
        """Refused by every backend, in words."""
        request = pb.CudaSharedMemoryRegisterRequest(name=_region(exchange))
        await self._backend.call("CudaSharedMemoryRegister", request)
        exchange.respond(200, b"")

    def _memory_status(self, kind: str) -> Handler:
        message_type = getattr(pb, f"{kind}SharedMemoryStatusRequest")

        async def status(exchange: Exchange) -> None:
            reply = await self._backend.call(
                f"{kind}SharedMemoryStatus", message_type(name=_region(exchange))
            )
            _respond(exchange, list(reply.regions.values()))

        return status

    def _unregister(self, kind: str) -> Handler:
        message_type = getattr(pb, f"{kind}SharedMemoryUnregisterRequest")

        async def unregister(exchange: Exchange) -> None:
            await self._backend.call(
                f"{kind}SharedMemoryUnregister", message_type(name=_region(exchange))
            )
            exchange.respond(200, b"")

        return unregister


def _model(exchange: Exchange) -> tuple[str, str]:
    """Name and version in a path; empty where it has none."""
    found = exchange.request.parameters
    return found.get("model", ""), found.get("version", "")


def _region(exchange: Exchange) -> str:
    return exchange.request.parameters.get("region", "")


def _read(decoder: msgspec.json.Decoder[Any], exchange: Exchange) -> Any:
    return read_json(decoder, exchange.request.body or b"{}")


def _respond(exchange: Exchange, message: Any) -> None:
    exchange.respond(200, msgspec.json.encode(plain(message)))


def _model_parameter(value: bool | int | str) -> pb.ModelRepositoryParameter:
    match value:
        case bool():
            return pb.ModelRepositoryParameter(bool_param=value)
        case int():
            return pb.ModelRepositoryParameter(int64_param=value)
        case _:
            return pb.ModelRepositoryParameter(string_param=value)
