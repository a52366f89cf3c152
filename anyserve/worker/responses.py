"""From a handler's `Response` to a ModelInferResponse on the wire."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from anyserve_protos.infer_request import InferRequest
from anyserve_protos.infer_wire import response_pieces
from anyserve_protos.response_head import OutputHead, encode_response_head

from anyserve import tensors
from anyserve.errors import AnyServeError, Internal, InvalidArgument
from anyserve.link.frames import Buffer
from anyserve.messages import Response
from anyserve.offers import Offer
from anyserve.worker.shared import ClientRegions, RegionOutputs, place_of
from anyserve.worker.templates import Template

_KEPT_TEMPLATES = 16
"""Templates that are kept for each head of requests."""


def _form(value: Any) -> tuple[Any, Any]:
    """What of an output's value decides all of the message but its contents."""
    return (value.dtype, value.shape) if type(value) is np.ndarray else (type(value), None)


class ResponseEncoder:
    """Encodes the responses to requests with one head: the outputs they ask for, where they say."""

    def __init__(self, offer: Offer, request: InferRequest) -> None:
        """Raises `InvalidArgument` for outputs asked for twice, unknown or placed nowhere."""
        self._offer = offer
        self._id = request.id
        self._declared = {spec.name: spec for spec in offer.outputs}
        # A dictionary, since many outputs may be asked for; it keeps their order.
        self._requested: dict[str, None] = {}
        for name in (output.name for output in request.outputs):
            if name in self._requested:
                raise InvalidArgument(f"output {name!r} is requested twice")
            if self._declared and name not in self._declared:
                raise InvalidArgument(
                    f"output {name!r} is unknown to {offer.name!r}, which gives"
                    f" {', '.join(self._declared)}"
                )
            self._requested[name] = None
        places = {
            output.name: place_of(f"output {output.name!r}", output.parameters)
            for output in request.outputs
        }
        self._places = {name: place for name, place in places.items() if place is not None}
        self._region_outputs: RegionOutputs | None = None
        self._templates: dict[tuple[tuple[Any, ...], ...], Template] = {}
        """What was written before, for the responses that are alike."""

    def within(self, regions: ClientRegions) -> ResponseEncoder:
        """The encoder for one of the requests, which may use these regions.

        Raises as `ClientRegions.outputs`.
        """
        if not self._places:
            return self
        encoder = copy.copy(self)
        encoder._region_outputs = regions.outputs(self._places)
        return encoder

    def encode(self, response: Any) -> Sequence[Buffer]:
        """The message in pieces, large tensors as they lie; an output in shared memory is empty.

        Raises `Internal` when the handler gave what it did not declare or no `Response` at all,
        `InvalidArgument` when an output that the request asked for is not there.
        """
        if not isinstance(response, Response):
            raise Internal(
                f"the handler of {self._offer.name!r} gave a {type(response).__name__},"
                " not a Response"
            )
        if response.parameters or self._places:
            head, raw = self._encode(response)
            return response_pieces(head, raw)
        key = tuple([(name, *_form(value)) for name, value in response.outputs.items()])
        template = self._templates.get(key)
        if template is not None:
            return template.fill(response.outputs)
        head, raw = self._encode(response)
        if len(self._templates) < _KEPT_TEMPLATES:
            template = Template.of(head, self._requested or response.outputs, response.outputs)
            if template is not None:
                self._templates[key] = template
        return response_pieces(head, raw)

    def _encode(self, response: Response) -> tuple[bytes, Sequence[Buffer]]:
        """The message without raw contents, and those."""
        outputs: list[OutputHead] = []
        raw: list[Buffer] = []
        in_regions = self._region_outputs
        for name in self._requested or response.outputs:
            if name not in response.outputs:
                raise InvalidArgument(f"output {name!r}: the handler did not give it")
            datatype, shape, buffer = self._encode_output(name, response.outputs[name])
            placed = in_regions.write(name, buffer) if in_regions is not None else {}
            outputs.append(OutputHead(name, datatype, shape, placed))
            raw.append(b"" if placed else buffer)
        name, version = self._offer.name, self._offer.version
        return encode_response_head(name, version, self._id, response.parameters, outputs), raw

    def _encode_output(self, name: str, value: Any) -> tuple[str, Sequence[int], Buffer]:
        spec = self._declared.get(name)
        if self._declared and spec is None:
            raise Internal(f"the handler of {self._offer.name!r} gave {name!r}, not declared")
        try:
            dtype = tensors.numpy_dtype(spec.datatype) if spec is not None else None
            array = tensors.as_array(value, dtype)
            datatype, shape, buffer = tensors.encode_raw(array)
        except (AnyServeError, ValueError, TypeError, OverflowError) as error:
            raise Internal(f"output {name!r} can't be encoded: {error}") from error
        if spec is not None and datatype != spec.datatype:
            raise Internal(f"output {name!r} is {datatype}, declared as {spec.datatype}")
        return datatype, shape, buffer
