"""`inference.GRPCInferenceService`: KServe v2 with Triton's extensions, on Trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from anyserve_actors import Address
from anyserve_protos import inference as pb
from grpclib.const import Cardinality, Handler

from anyserve import __version__
from anyserve.capability import Capability, check_name
from anyserve.errors import (
    AnyServeError,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    elsewhere,
)
from anyserve.objects.regions import Regions
from anyserve.replica.asking import ask_fleet
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Reply
from anyserve.replica.handback import RequestMetadata
from anyserve.replica.inference import Inference, scan
from anyserve.replica.memory_service import SharedMemoryService
from anyserve.replica.metadata import model_config, model_metadata, model_statistics
from anyserve.replica.pool import Pool, State
from anyserve.replica.repository import LoadModel, UnloadModel
from anyserve.replica.settings import Settings
from anyserve.replica.stream_infer import StreamedInference
from anyserve.replica.unary import UnaryInference, hand_back
from anyserve.traces import at_door
from anyserve.transport.callback import Callback, UnaryCall
from anyserve.transport.rpc import ServerStream

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "sequence",
    "statistics",
    "logging",
)
MEMORY_EXTENSION = "system_shared_memory"

Method = Callable[[Any], Awaitable[Any]]
Ask = Callable[[str, Any, RequestMetadata], Awaitable[Any]]
"""Calls a method by its name, with its request and the metadata of the call."""


class InferenceService:
    """The service that clients speak to; it parses and answers, and decides nothing."""

    def __init__(
        self,
        *,
        server_name: str,
        dispatcher: Dispatcher,
        inference: Inference,
        regions: Regions,
        client_shared_memory: bool,
        repository: Address[LoadModel | UnloadModel],
        is_ready: Callable[[], bool],
    ) -> None:
        """client_shared_memory: whether clients may register regions of their own.

        is_ready: whether the replica has loaded all it should and is not draining.
        """
        self._server_name = server_name
        self._dispatcher = dispatcher
        self._inference = inference
        self._memory = SharedMemoryService(regions, enabled=client_shared_memory)
        self._extensions = [*EXTENSIONS, *([MEMORY_EXTENSION] if client_shared_memory else [])]
        self._repository = repository
        self._is_ready = is_ready
        self._settings = Settings()
        self._methods = self._by_name()

    def _by_name(self) -> Mapping[str, Method]:
        """The methods of one request and one reply, but for ModelInfer."""
        memory, settings = self._memory, self._settings
        return {
            "ServerLive": self.live,
            "ServerReady": self.ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
            "SystemSharedMemoryStatus": memory.status,
            "SystemSharedMemoryRegister": memory.register,
            "SystemSharedMemoryUnregister": memory.unregister,
            "CudaSharedMemoryStatus": memory.cuda_status,
            "CudaSharedMemoryRegister": memory.cuda_register,
            "CudaSharedMemoryUnregister": memory.cuda_unregister,
            "TraceSetting": settings.trace,
            "LogSettings": settings.log,
        }

    def __mapping__(self) -> Mapping[str, Handler]:
        """The methods, in the form of grpclib services; ModelInfer's messages stay bytes."""
        return kserve_mapping(self._methods, self.ask, self.infer, self.stream_infer)

    async def ask(self, name: str, request: Any, metadata: RequestMetadata = ()) -> Any:
        """Call a method of one request and one reply, with the metadata of the call.

        What is asked of a model that is not here is asked of the fleet. Waits and raises as the
        method does, and as `ask_fleet`.
        """
        try:
            return await self._methods[name](request)
        except AnyServeError as error:
            refused = error
        path, reply_type = f"/{SERVICE}/{name}", getattr(pb, f"{name}Response")
        try:
            return await ask_fleet(
                self._inference.handback, path, request, reply_type, refused, metadata
            )
        except (NotFound, Unavailable):
            if name == "ModelReady":
                return pb.ModelReadyResponse(ready=False)
            raise

    # Inference.

    def infer(self, call: UnaryCall, body: bytes) -> None:
        """One request, exactly one response."""

        head = scan(body)
        trace = at_door(call.metadata)

        def done(result: Reply | AnyServeError) -> None:
            if not isinstance(result, AnyServeError):
                call.answer(result.pieces, result.release)
            elif handback is not None and result.elsewhere:
                hand_back(handback, call, head, result, trace)
            else:
                call.fail(result)

        handback = self._inference.handback
        try:
            accepted = self._inference.accept(head, call.metadata, call.deadline, trace)
            request = UnaryInference(self._inference, accepted, "ModelInfer", done)
            call.on_gone = request.cancel
            request.start()
        except AnyServeError as error:
            done(error)

    async def stream_infer(self, stream: ServerStream) -> None:
        """Many requests, each with any number of responses."""
        await StreamedInference(self._inference, stream).run()

    # The server and its models.

    async def live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=self._server_name, version=__version__, extensions=list(self._extensions)
        )

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Raises `NotFound` or `Unavailable` where it is not: it may be elsewhere."""
        self._loaded(request.name, request.version).check_serving()
        return pb.ModelReadyResponse(ready=True)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        return model_metadata(self._offered(request.name, request.version).offer)

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        pool = self._offered(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(pool.offer))

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        if request.name:
            try:
                pools = [self._loaded(request.name, request.version)]
            except NotFound as error:
                raise elsewhere(InvalidArgument(error.message)) from None
        else:
            pools = [pool for pool in self._dispatcher.pools if pool.state is State.READY]
        return pb.ModelStatisticsResponse(model_stats=[model_statistics(pool) for pool in pools])

    def _loaded(self, name: str, version: str) -> Pool:
        """The pool that requests for a capability go to, loaded or loading.

        Raises `NotFound`, and `InvalidArgument` for what can be no name or version.
        """
        return self._dispatcher.match(Capability(name, version=version))[0]

    def _offered(self, name: str, version: str) -> Pool:
        """The same, or what is on demand and would serve it: its app has said what it is."""
        try:
            return self._loaded(name, version)
        except NotFound:
            pool = self._dispatcher.loadable(Capability(name, version=version))
            if pool is None:
                raise
            return pool

    # The repository.

    async def repository_index(
        self, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponseModelIndex(
                    name=pool.offer.name,
                    version=pool.offer.version,
                    state=pool.seen_state.value,
                    reason="" if pool.serving else pool.reason,
                )
                for pool in self._dispatcher.pools
                if pool.serving or not request.ready
            ]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        name = model_name(request)
        if request.parameters:
            raise Unimplemented(
                "a capability is loaded as its app declares it: parameters are not supported"
            )
        self._dispatcher.pool(name)
        await self._repository.ask(lambda reply: LoadModel(name, reply))
        return pb.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        name = model_name(request)
        self._dispatcher.pool(name)
        await self._repository.ask(lambda reply: UnloadModel(name, reply))
        return pb.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)


def model_name(request: Any) -> str:
    """The model of a load or unload: Triton has it in its own field, KServe in the first."""
    return check_name(request.model_name or request.repository_name)


def kserve_mapping(
    names: Iterable[str],
    ask: Ask,
    infer: Callable[[UnaryCall, bytes], None],
    stream_infer: Callable[[ServerStream], Awaitable[None]],
) -> Mapping[str, Handler]:
    """The methods of the service by their paths, in the form of grpclib services.

    names: of those of one request and one reply, which `ask` calls. The messages of the others stay
    bytes.
    """
    methods = {name: _unary(name, partial(ask, name)) for name in names}
    methods["ModelInfer"] = Handler(Callback(infer), Cardinality.UNARY_UNARY, bytes, bytes)
    methods["ModelStreamInfer"] = Handler(stream_infer, Cardinality.STREAM_STREAM, bytes, bytes)
    return {f"/{SERVICE}/{name}": method for name, method in methods.items()}


def _unary(name: str, ask: Callable[[Any, RequestMetadata], Awaitable[Any]]) -> Handler:
    """A method of one request and one reply, whose types are called after it."""

    async def handle(stream: ServerStream) -> None:
        request = await stream.recv_message()
        await stream.send_message(await ask(request, stream.metadata.items()))

    request_type = getattr(pb, f"{name}Request")
    reply_type = getattr(pb, f"{name}Response")
    return Handler(handle, Cardinality.UNARY_UNARY, request_type, reply_type)
