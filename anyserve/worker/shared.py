"""A request's tensors in the client's own shared memory: inputs read, outputs written."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from anyserve_protos.infer_wire import Parameter

from anyserve.capability import Attribute
from anyserve.errors import InvalidArgument, NotFound
from anyserve.link.frames import Buffer
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef, check_overlaps
from anyserve.region_parameters import BYTE_SIZE, OFFSET, REGION


@attrs.frozen
class Place:
    """Where in the client's regions a request says that a tensor lies."""

    what: str
    """How errors call the tensor, such as `input 'x'`."""
    region: str
    offset: int
    """Bytes from the region's start."""
    size: int
    """Bytes."""


def place_of(what: str, parameters: Mapping[str, Parameter]) -> Place | None:
    """The place that a tensor's parameters name; None where it lies in the message.

    Raises `InvalidArgument` for parameters that make no sense.
    """
    if REGION not in parameters:
        return None
    region = parameters[REGION]
    if not isinstance(region, str) or not region:
        raise InvalidArgument(f"{what}: parameter {REGION!r} is not a name")
    size = _number(what, parameters, BYTE_SIZE)
    if size is None:
        raise InvalidArgument(f"{what}: parameter {BYTE_SIZE!r} is missing")
    return Place(what, region, _number(what, parameters, OFFSET) or 0, size)


class ClientRegions:
    """The regions that one request may use, by name."""

    def __init__(self, regions: Mapping[str, RegionRef], files: RegionFiles) -> None:
        self._regions = regions
        self._files = files

    def read(self, place: Place) -> bytes:
        """What lies there, in one guarded copy.

        Raises `NotFound` for an unknown region, `InvalidArgument` for a range outside it or a
        region that has shrunk or was unlinked.
        """
        return self._files.read(self._ref(place))

    def outputs(self, places: Mapping[str, Place]) -> RegionOutputs:
        """Where the outputs go, by their names; raises as `read`, and for those that overlap."""
        refs = {name: self._ref(place) for name, place in places.items()}
        check_overlaps(list(refs.values()))
        return RegionOutputs(places, refs, self._files)

    def _ref(self, place: Place) -> RegionRef:
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"{place.what}: no shared-memory region {place.region!r} is registered")
        return region.part(place.offset, place.size)


@attrs.frozen
class RegionOutputs:
    """The outputs of one request that go into its client's regions, by their names."""

    _places: Mapping[str, Place]
    _refs: Mapping[str, RegionRef]
    _files: RegionFiles

    def write(self, name: str, buffer: Buffer) -> Mapping[str, Attribute]:
        """Write an output where the request wants it, if it does; the parameters that say so.

        Raises `Internal` when the range that the client gave is too small.
        """
        place = self._places.get(name)
        if place is None:
            return {}
        self._files.write(self._refs[name], buffer)
        parameters: dict[str, Attribute] = {REGION: place.region}
        if place.offset:
            parameters[OFFSET] = place.offset
        parameters[BYTE_SIZE] = len(buffer)
        return parameters


def _number(what: str, parameters: Mapping[str, Parameter], key: str) -> int | None:
    value = parameters.get(key)
    if value is None:
        return None
    if type(value) is not int or value < 0:  # a bool is an int, but no number of bytes
        raise InvalidArgument(f"{what}: parameter {key!r} is not a number of bytes")
    return value
