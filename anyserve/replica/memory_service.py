"""The shared-memory methods of the inference service; CUDA's are there to say that it is not."""

from __future__ import annotations

from anyserve_protos import inference as pb

from anyserve.errors import Unimplemented
from anyserve.objects.regions import Regions


class SharedMemoryService:
    """Registers clients' regions. Everything that can be wrong with one raises in `Regions`."""

    def __init__(self, regions: Regions, *, enabled: bool) -> None:
        """enabled: whether clients may register any."""
        self._regions = regions
        self._enabled = enabled

    async def status(
        self, request: pb.SystemSharedMemoryStatusRequest
    ) -> pb.SystemSharedMemoryStatusResponse:
        return pb.SystemSharedMemoryStatusResponse(
            regions={
                region.name: pb.SystemSharedMemoryStatusResponseRegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.byte_size,
                )
                for region in self._regions.status(request.name)
            }
        )

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest
    ) -> pb.SystemSharedMemoryRegisterResponse:
        if not self._enabled:
            raise Unimplemented(
                "clients' shared memory is switched off here; send tensors in the message"
            )
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        if request.name:
            self._regions.unregister(request.name)
        else:
            self._regions.unregister_all()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, request: pb.CudaSharedMemoryStatusRequest
    ) -> pb.CudaSharedMemoryStatusResponse:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(
        self, request: pb.CudaSharedMemoryRegisterRequest
    ) -> pb.CudaSharedMemoryRegisterResponse:
        raise Unimplemented("CUDA shared memory is not supported here; use system shared memory")

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        # Clients call this first, whether or not there is a GPU.
        return pb.CudaSharedMemoryUnregisterResponse()
