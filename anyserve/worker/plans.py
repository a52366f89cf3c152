"""What the head of a request asks of a handler: read and checked once for all requests alike.

Clients send the same head again and again (names, datatypes, shapes, often no id); what follows
from it alone need not be worked out each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from anyserve_protos.infer_request import InferRequest, InputTensor, decode_request

from anyserve import tensors
from anyserve.capability import Attribute
from anyserve.errors import InvalidArgument
from anyserve.link.frames import Buffer
from anyserve.messages import Request
from anyserve.offers import Offer
from anyserve.region_parameters import REGION
from anyserve.tensors import Layout
from anyserve.worker.responses import ResponseEncoder
from anyserve.worker.shared import ClientRegions, Place, place_of

_KEPT = 256
"""Plans that are kept for each handler."""
_KEPT_HEAD = 1024
"""Bytes of the longest head whose plan is kept."""


@attrs.define  # frozen costs more to make, and each request makes one
class Opened:
    """A request that has passed every check."""

    request: Request
    encoder: ResponseEncoder
    batch: int
    """How many inferences it counts for."""


@attrs.frozen
class _Input:
    """An input that need not be looked at again, but for its length."""

    name: str
    layout: Layout
    place: Place | None
    """None where it is in the raw contents."""


@attrs.frozen
class _Plan:
    """All that follows from a head of which no input is typed."""

    id: str
    parameters: Mapping[str, Attribute]
    inputs: Sequence[_Input]
    raw: int
    """How many of them are in the raw contents, in this order."""
    encoder: ResponseEncoder
    batch: int


class Plans:
    """Opens the requests of one handler."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._plans: dict[bytes, _Plan] = {}

    def open(self, head: Buffer, raw: Sequence[Buffer], regions: ClientRegions) -> Opened:
        """Check a request and make its arrays.

        head: the ModelInferRequest without its raw contents, which are `raw`. Raises
        `InvalidArgument` naming what is wrong, and as `ClientRegions` does.
        """
        if len(head) > _KEPT_HEAD:
            return self._open_anew(decode(head), raw, regions)
        key = bytes(head)
        plan = self._plans.get(key)
        if plan is None or len(raw) != plan.raw:
            message = decode(key)
            opened = self._open_anew(message, raw, regions)
            if raw or all(REGION in tensor.parameters for tensor in message.inputs):
                self._keep(key, message, opened, len(raw))
            return opened
        left = iter(raw)
        arrays = {
            tensor.name: tensor.layout.decode(
                next(left) if tensor.place is None else regions.read(tensor.place)
            )
            for tensor in plan.inputs
        }
        request = Request(self._offer.name, arrays, plan.id, dict(plan.parameters))
        return Opened(request, plan.encoder.within(regions), plan.batch)

    def _open_anew(
        self, message: InferRequest, raw: Sequence[Buffer], regions: ClientRegions
    ) -> Opened:
        shared = {
            tensor.name: regions.read(place)
            for tensor in message.inputs
            if (place := _place(tensor)) is not None
        }
        arrays = tensors.decode_inputs(message, raw, shared)
        batch = check_inputs(self._offer, arrays)
        encoder = ResponseEncoder(self._offer, message).within(regions)
        request = Request(self._offer.name, arrays, message.id, message.parameters)
        return Opened(request, encoder, batch)

    def _keep(self, key: bytes, message: InferRequest, opened: Opened, raw: int) -> None:
        if len(self._plans) >= _KEPT:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = _Plan(
            id=message.id,
            parameters=dict(opened.request.parameters),
            inputs=[
                _Input(
                    tensor.name,
                    Layout.of(f"input {tensor.name!r}", tensor.datatype, tensor.shape),
                    _place(tensor),
                )
                for tensor in message.inputs
            ],
            raw=raw,
            encoder=opened.encoder,
            batch=opened.batch,
        )


def _place(tensor: InputTensor) -> Place | None:
    return place_of(f"input {tensor.name!r}", tensor.parameters)


def decode(head: Buffer) -> InferRequest:
    """The message; raises `InvalidArgument` when it is none."""
    try:
        return decode_request(head)
    except ValueError as error:
        raise InvalidArgument(f"the request is no ModelInferRequest: {error}") from error


def check_inputs(offer: Offer, arrays: Mapping[str, Any]) -> int:
    """Hold the inputs against what the handler declared; returns the batch size, 1 without one.

    Raises `InvalidArgument` naming the input. Nothing declared lets every input through.
    """
    if offer.inputs:
        declared = {spec.name: spec for spec in offer.inputs}
        for name in arrays:
            if name not in declared:
                raise InvalidArgument(f"input {name!r}: {offer.name!r} takes {', '.join(declared)}")
        for spec in offer.inputs:
            if spec.name in arrays:
                array = arrays[spec.name]
                spec.check(tensors.datatype_of(array), array.shape, offer.max_batch_size > 0)
            elif not spec.optional:
                raise InvalidArgument(f"input {spec.name!r} is missing")
    return _batch_size(offer, arrays) if offer.max_batch_size else 1


def _batch_size(offer: Offer, arrays: Mapping[str, Any]) -> int:
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidArgument(f"the inputs' batch sizes differ: {sizes}")
    size = next(iter(sizes.values()), 1)
    if not 1 <= size <= offer.max_batch_size:
        raise InvalidArgument(
            f"batch size {size}: {offer.name!r} takes from 1 to {offer.max_batch_size}"
        )
    return size
