"""`inference.GRPCInferenceService` of the fleet, as one server."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any, TypeVar

import trio
from anyserve_protos import inference as pb
from grpclib.const import Handler

from anyserve import __version__
from anyserve.capability import Capability, Power, least, power
from anyserve.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from anyserve.replica.handback import RequestMetadata
from anyserve.replica.service import EXTENSIONS, kserve_mapping, model_name
from anyserve.replica.settings import Settings
from anyserve.transport.callback import UnaryCall
from anyserve.transport.rpc import ServerStream
from anyserve_scheduler.channels import Channels
from anyserve_scheduler.fleet import ReplicaState, ReplicaView
from anyserve_scheduler.gateway.asking import Questions, Said
from anyserve_scheduler.gateway.merging import merged_index, merged_statistics, order_failure
from anyserve_scheduler.gateway.stream import ForwardedStream
from anyserve_scheduler.gateway.unary import ForwardedUnary
from anyserve_scheduler.gateway.ways import Ways
from anyserve_scheduler.routing import Hints, NoRoute

_ATTEMPTS = 3
"""Replicas that are asked what they know of a model, where one does not answer."""
_NO_MEMORY = (
    "shared memory is of one machine, and the replicas may be on others: send tensors in the"
    " message, or register the memory with a replica"
)

Reply = TypeVar("Reply")
Method = Callable[[Any], Awaitable[Any]]

_log = logging.getLogger(__name__)


class GatewayService:
    """The service that clients of the fleet speak to."""

    def __init__(self, ways: Ways, channels: Channels) -> None:
        """channels: to the replicas, for what is not passed on but asked."""
        self._ways = ways
        self._questions = Questions(channels, ways.links)
        self._settings = Settings()
        self._methods = self._by_name()

    def _by_name(self) -> Mapping[str, Method]:
        """The methods of one request and one reply, but for ModelInfer."""
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
            "SystemSharedMemoryStatus": self.memory_status,
            "SystemSharedMemoryRegister": self.memory_register,
            "SystemSharedMemoryUnregister": self.memory_unregister,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryRegister": self.memory_register,
            "CudaSharedMemoryUnregister": self.cuda_unregister,
            "TraceSetting": self._settings.trace,
            "LogSettings": self._settings.log,
        }

    def __mapping__(self) -> Mapping[str, Handler]:
        """The methods, in the form of grpclib services; inference passes as bytes."""
        return kserve_mapping(self._methods, self.ask, self.infer, self.stream_infer)

    async def ask(self, name: str, request: Any, metadata: RequestMetadata = ()) -> Any:
        """Call a method of one request and one reply; waits and raises as that does."""
        return await self._methods[name](request)

    # Inference.

    def infer(self, call: UnaryCall, body: bytes) -> None:
        """One request, exactly one response."""
        ForwardedUnary(self._ways, call, body)

    async def stream_infer(self, stream: ServerStream) -> None:
        """Many requests, each with any number of responses."""
        await ForwardedStream(self._ways, stream).run()

    # The fleet and its models.

    async def live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(
            ready=any(view.state is ReplicaState.LIVE for view in self._replicas())
        )

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="anyserve", version=__version__, extensions=list(EXTENSIONS)
        )

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        ready = bool(self._serving(_need(request)))
        return pb.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """What a replica says, with all versions that the fleet serves."""
        reply = await self._ask_one(request, "ModelMetadata", pb.ModelMetadataResponse)
        views = self._ways.registry.fleet().offering(reply.name)
        offers = [view.offers.get(reply.name) for view in views]
        versions = {
            offer.capability.version for offer in offers if offer is not None and not offer.loadable
        }
        reply.versions = sorted({*versions, *reply.versions}, key=lambda each: (len(each), each))
        return reply

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return await self._ask_one(request, "ModelConfig", pb.ModelConfigResponse)

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest
    ) -> pb.ModelStatisticsResponse:
        """The sums over all replicas that answer."""
        views = self._replicas()
        if request.name:
            views = self._serving(_need(request))
            if not views:
                missing = InvalidArgument(f"nothing in the fleet serves {request.name!r}")
                raise self._ways.missing(missing)
        said = await self._ask_all(views, "ModelStatistics", request, pb.ModelStatisticsResponse)
        return merged_statistics(each.reply for each in said if each.reply is not None)

    # The repository.

    async def repository_index(
        self, request: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        """Each version of each model once, in the best state that it has anywhere."""
        said = await self._ask_all(
            self._replicas(), "RepositoryIndex", request, pb.RepositoryIndexResponse
        )
        indexes = (each.reply for each in said if each.reply is not None)
        return merged_index(indexes, ready=request.ready)

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Load on all replicas that know the model."""
        name = model_name(request)
        await self._order("Load", name, request)
        return pb.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def unload(
        self, request: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload on all replicas that know it."""
        name = model_name(request)
        await self._order("Unload", name, request)
        return pb.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    # Shared memory, which ends where the machine does.

    async def memory_status(
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        return pb.SystemSharedMemoryStatusResponse()

    async def memory_register(self, request: Any) -> Any:
        raise Unimplemented(_NO_MEMORY)

    async def memory_unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        return pb.SystemSharedMemoryUnregisterResponse()  # clients call it before all else

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()

    # Whom to ask.

    def _replicas(self) -> list[ReplicaView]:
        return list(self._ways.registry.fleet().replicas.values())

    def _serving(self, need: Capability, *, loadable: bool = False) -> list[ReplicaView]:
        """The replicas that serve what is needed, the least powerful first, of these live ones.

        loadable: instead, those that could load it.
        """
        fleet = self._ways.registry.fleet()
        found: list[tuple[Power, bool, str, ReplicaView]] = []
        for view in fleet.loadable(need.name) if loadable else fleet.offering(need.name):
            offers = [each for each in view.offers.values() if each.loadable is loadable]
            offer = least(need, [each.capability for each in offers])
            if offer is not None:
                found.append((power(offer), view.state is not ReplicaState.LIVE, view.id, view))
        return [view for *_, view in sorted(found, key=itemgetter(0, 1, 2))]

    async def _ask_one(self, request: Any, method: str, reply_type: type[Reply]) -> Reply:
        """What a replica says that serves the model, whatever its load, or else could load it.

        Raises why there is none, and what the last one said where none knows the answer.
        """
        need = _need(request)
        views = self._serving(need) or self._serving(need, loadable=True)
        if not views:
            none = self._ways.router.choose(need, Hints(), trio.current_time())
            assert isinstance(none, NoRoute)
            raise self._ways.missing(none.error())
        *first, last = views[:_ATTEMPTS]
        for view in first:
            with suppress(NotFound, Unavailable):  # it has just gone, or has unloaded it
                return await self._questions.ask(view, method, request, reply_type)
        return await self._questions.ask(last, method, request, reply_type)

    async def _ask_all(
        self, views: list[ReplicaView], method: str, request: Any, reply_type: type[Reply]
    ) -> list[Said[Reply]]:
        """What all of these say; raises `Unavailable` where none of them answers."""
        said = await self._questions.ask_all(views, method, request, reply_type)
        silent = [each for each in said if isinstance(each.error, Unavailable)]
        for each in silent:
            _log.warning("%s: replica %s: %s", method, each.replica, each.error)
        if silent and len(silent) == len(said):
            raise Unavailable(f"no replica answers; {silent[0].replica}: {silent[0].error}")
        return said

    async def _order(self, verb: str, name: str, request: Any) -> None:
        """Have all replicas do it that know the model; raises what goes wrong at any of them.

        verb: "Load" or "Unload". It takes as long as it takes: the caller's deadline bounds it.
        """
        views = await self._knowing(name)
        method = f"RepositoryModel{verb}"
        reply_type = getattr(pb, f"{method}Response")
        said = await self._questions.ask_all(views, method, request, reply_type, math.inf)
        failed = {each.replica: each.error for each in said if each.error is not None}
        if failed:
            others = [each.replica for each in said if each.error is None]
            raise order_failure(failed, others, f"{verb.lower()}ed")

    async def _knowing(self, name: str) -> list[ReplicaView]:
        """The replicas that offer a model, could load it, or list it, but for those that drain.

        Raises `NotFound` where none does, and `Unavailable` where some have not said.
        """
        views = [view for view in self._replicas() if view.state is not ReplicaState.DRAINING]
        known = [view for view in views if name in view.offers]
        others = {view.id: view for view in views if name not in view.offers}
        asked = pb.RepositoryIndexRequest()
        said = await self._questions.ask_all(
            others.values(), "RepositoryIndex", asked, pb.RepositoryIndexResponse
        )
        known += [
            others[each.replica]
            for each in said
            if each.reply is not None and any(model.name == name for model in each.reply.models)
        ]
        if not known:
            for each in said:
                if each.error is not None:
                    raise Unavailable(f"no replica that answers has {name!r}: {each.error.message}")
            missing = NotFound(f"no replica of the fleet has {name!r}")
            raise self._ways.missing(missing)
        return known


def _need(request: Any) -> Capability:
    """The model that a request names, in its version; raises `InvalidArgument`."""
    return Capability(request.name, version=request.version)
