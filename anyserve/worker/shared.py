"""A request's tensors in the client's own shared memory: inputs read, outputs written."""

from __future__ import annotations

from collections.abc import Mapping

from anyserve_protos.inference import InferParameter, ModelInferRequest

from anyserve.capability import Attribute
from anyserve.errors import InvalidArgument, NotFound
from anyserve.link.frames import Buffer
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef, check_overlaps
from anyserve.tensors import REGION

BYTE_SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"


class ClientRegions:
    """The regions that one request may use, by name, and its tensors in them."""

    def __init__(self, regions: Mapping[str, RegionRef], files: RegionFiles) -> None:
        self._regions = regions
        self._files = files
        self._outputs: dict[str, tuple[RegionRef, Mapping[str, Attribute]]] = {}

    def read_inputs(self, request: ModelInferRequest) -> dict[str, Buffer]:
        """The bytes of each input that lies in a region, read in one guarded copy.

        Raises `NotFound` for an unknown region, `InvalidArgument` for a range outside it or a
        region that has shrunk or was unlinked.
        """
        shared: dict[str, Buffer] = {}
        for tensor in request.inputs:
            if REGION in tensor.parameters:
                place = self._place(f"input {tensor.name!r}", tensor.parameters)
                shared[tensor.name] = self._files.read(place)
        return shared

    def plan_outputs(self, request: ModelInferRequest) -> None:
        """Note where the request wants its outputs; raises as `read_inputs`, and for overlaps."""
        for tensor in request.outputs:
            if REGION in tensor.parameters:
                place = self._place(f"output {tensor.name!r}", tensor.parameters)
                parameters: dict[str, Attribute] = {REGION: place.name}
                offset = _number(f"output {tensor.name!r}", tensor.parameters, OFFSET)
                if offset:
                    parameters[OFFSET] = offset
                self._outputs[tensor.name] = place, parameters
        check_overlaps([place for place, _ in self._outputs.values()])

    def write_output(self, name: str, buffer: Buffer) -> Mapping[str, Attribute]:
        """Write an output where the request wants it, if it does; the parameters that say so.

        Raises `Internal` when the range that the client gave is too small.
        """
        if name not in self._outputs:
            return {}
        place, parameters = self._outputs[name]
        self._files.write(place, buffer)
        return {**parameters, BYTE_SIZE: len(buffer)}

    def _place(self, what: str, parameters: Mapping[str, InferParameter]) -> RegionRef:
        region = parameters[REGION].string_param
        if not region:
            raise InvalidArgument(f"{what}: parameter {REGION!r} is not a name")
        if region not in self._regions:
            raise NotFound(f"{what}: no shared-memory region {region!r} is registered")
        size = _number(what, parameters, BYTE_SIZE)
        if size is None:
            raise InvalidArgument(f"{what}: parameter {BYTE_SIZE!r} is missing")
        offset = _number(what, parameters, OFFSET) or 0
        return self._regions[region].part(offset, size)


def _number(what: str, parameters: Mapping[str, InferParameter], key: str) -> int | None:
    if key not in parameters:
        return None
    value = parameters[key].int64_param
    if value is None or value < 0:
        raise InvalidArgument(f"{what}: parameter {key!r} is not a number of bytes")
    return value
