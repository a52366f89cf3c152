"""What a handler declares and a replica offers: tensor specifications and limits, as values.

An `Offer` crosses from worker to replica as JSON when the worker has loaded its app.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from anyserve.capability import Attribute, Capability
from anyserve.errors import InvalidArgument

_SPEC = re.compile(r"\s*([A-Z]+[0-9]*)\s*\[([-0-9,\s]*)\]\s*(\?)?\s*")
DATATYPES = frozenset(
    {
        *("BOOL", "BYTES", "FP16", "BF16", "FP32", "FP64"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    }
)


@attrs.frozen
class TensorSpec:
    """One declared input or output."""

    name: str
    datatype: str
    """A KServe v2 datatype, such as FP32 or BYTES."""
    shape: tuple[int, ...]
    """Dimensions without the batch dimension; -1 is any size."""
    optional: bool = False

    @classmethod
    def parse(cls, name: str, text: str) -> TensorSpec:
        """The specification in `DATATYPE[dims]` form, with a trailing `?` where it is optional.

        Raises `ValueError` for anything else.
        """
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(
                f"tensor {name!r}: {text!r} is not of the form DATATYPE[dims], such as FP32[-1,4]"
            )
        datatype, dims, optional = match.groups()
        if datatype not in DATATYPES:
            raise ValueError(
                f"tensor {name!r}: {datatype} is none of {', '.join(sorted(DATATYPES))}"
            )
        shape = tuple(int(dim) for dim in dims.split(",") if dim.strip())
        if any(dim < -1 for dim in shape):
            raise ValueError(f"tensor {name!r}: a dimension is -1 (any size), 0 or more")
        return cls(name, datatype, shape, optional is not None)

    def check(self, datatype: str, shape: Sequence[int], batched: bool) -> None:
        """Raise `InvalidArgument` unless a tensor of `datatype` and `shape` fits.

        `batched`: `shape` carries a leading batch dimension that this specification leaves out.
        """
        if datatype != self.datatype:
            raise InvalidArgument(
                f"input {self.name!r}: datatype {datatype}, but {self.datatype} is expected"
            )
        expected = (-1, *self.shape) if batched else self.shape
        if len(shape) != len(expected) or any(
            want not in (-1, got) for want, got in zip(expected, shape, strict=True)
        ):
            raise InvalidArgument(
                f"input {self.name!r}: shape {list(shape)}, but {list(expected)} is expected"
            )


FIRST_VERSION = "1"
"""That of an offer which declares none."""


def _with_version(capability: Capability) -> Capability:
    if capability.version:
        return capability
    return attrs.evolve(capability, version=FIRST_VERSION)


@attrs.frozen
class Offer:
    """One capability that a worker serves, with all that the replica needs to know of it."""

    capability: Capability = attrs.field(converter=_with_version)
    """It always has a version."""
    inputs: tuple[TensorSpec, ...] = ()
    """Empty: anything is accepted and the handler checks for itself."""
    outputs: tuple[TensorSpec, ...] = ()
    max_batch_size: int = 0
    """Over 0: every tensor has a leading batch dimension of at most this."""
    decoupled: bool = False
    """A request may have 0 to n responses."""
    sequence: bool = False
    """Requests of one `sequence_id` go to one worker, in order."""
    sequence_idle: float = 60.0
    """Seconds after which a sequence that says nothing is over."""
    concurrency: int = 64
    """Requests at once in one worker."""
    queue: int = 1024
    """Requests that may wait for a slot, over all workers."""
    idempotent: bool = False
    """May be run again on another worker when its worker dies before it has sent anything."""
    resumable: bool = False
    """A stream that breaks may go on elsewhere, from the `token_ids` that it has brought."""

    @property
    def name(self) -> str:
        return self.capability.name

    @property
    def version(self) -> str:
        return self.capability.version

    def with_attributes(self, attributes: Mapping[str, Attribute]) -> Offer:
        """This offer with `attributes` added to its capability's."""
        merged = {**self.capability.attributes, **attributes}
        return attrs.evolve(self, capability=attrs.evolve(self.capability, attributes=merged))

    def to_json(self) -> dict[str, Any]:
        """A value that `json.dumps` takes."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Offer:
        """The offer that `to_json` wrote."""
        fields = dict(value)
        return cls(
            capability=Capability(**fields.pop("capability")),
            inputs=_specs(fields.pop("inputs")),
            outputs=_specs(fields.pop("outputs")),
            **fields,
        )


def _specs(values: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(v["name"], v["datatype"], tuple(v["shape"]), v["optional"]) for v in values
    )


def parse_specs(specs: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """The specifications of a handler's `inputs=` or `outputs=`; raises `ValueError`."""
    return tuple(TensorSpec.parse(name, text) for name, text in specs.items())


def declare(name: str, attributes: Mapping[str, Attribute], version: str, **fields: Any) -> Offer:
    """An `Offer` whose values are checked; raises `ValueError` in words a developer can act on."""
    try:
        capability = Capability(name, attributes, version)
    except InvalidArgument as error:
        raise ValueError(error.message) from None
    offer = Offer(capability, **fields)
    for limit in ("concurrency", "queue", "max_batch_size"):
        least = 1 if limit == "concurrency" else 0
        if getattr(offer, limit) < least:
            raise ValueError(f"capability {name!r}: {limit} is at least {least}")
    if offer.sequence_idle <= 0:
        raise ValueError(f"capability {name!r}: sequence_idle is more than 0 seconds")
    return offer
