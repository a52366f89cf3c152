"""What the two inference calls share: a request is read, matched, and becomes an execution."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import attrs
import trio
from anyserve_protos.infer_wire import (
    InferRequestHead,
    WireError,
    scan_request,
    scan_tensor_parameters,
)

from anyserve.capability import Attribute, need_of
from anyserve.errors import InvalidArgument, NotFound, ResourceExhausted
from anyserve.objects.regions import RegionRef, Regions
from anyserve.offers import Offer
from anyserve.pairs import check_client, check_paired, is_placed
from anyserve.region_parameters import BYTE_SIZE, REGION
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call
from anyserve.replica.execution import Consumer, Execution
from anyserve.replica.handback import Handback
from anyserve.replica.sequences import sequence_of
from anyserve.traces import Trace

_REGION = REGION.encode()
_MAX_TIMEOUT_US = 2**53
_NAMED = 100
"""Characters of a request's id that name it in logs and traces."""
MAX_HEAD = 16 << 20
"""Bytes of a request without its raw contents. Typed contents become Python numbers, at some 40
bytes each, so that large tensors have to come raw."""


@attrs.define
class Accepted:
    """A request that was read and matched to a capability."""

    call: Call
    offer: Offer
    head: InferRequestHead


class Inference:
    """Reads requests as far as they must be read here, and runs them through the dispatcher."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        regions: Regions,
        max_shared_bytes: int,
        handback: Handback | None = None,
    ) -> None:
        """max_shared_bytes: that a request may have in its client's shared memory.

        handback: where what can't be served here goes; None for a replica without a scheduler.
        """
        self.handback = handback
        self._dispatcher = dispatcher
        self._regions = regions
        self._max_shared_bytes = max_shared_bytes
        self._numbers = itertools.count(1)

    def accept(
        self,
        head: InferRequestHead,
        metadata: Iterable[tuple[str, str | bytes]],
        deadline: float,
        trace: Trace | None = None,
    ) -> Accepted:
        """Match a request to a capability; raises what is wrong with it.

        metadata, deadline: those of the gRPC call. trace: in the place of what they say of one.
        """
        if len(head.head) > MAX_HEAD:
            raise ResourceExhausted(
                f"{len(head.head)} bytes beside the raw contents, over the limit of {MAX_HEAD}:"
                " send large tensors as raw contents"
            )
        if trace is not None:
            metadata = trace.onto(metadata)
        texts = {key: value for key, value in metadata if isinstance(value, str)}
        need = None if self.handback is None else self.handback.need(metadata)
        if need is None:
            need = need_of(head.model_name, head.parameters, texts.items(), head.model_version)
        try:
            offer = self._dispatcher.match(need)[0].offer
        except NotFound:
            self._dispatcher.turned_away += 1
            raise
        if is_placed(head.parameters) and not (self.handback and self.handback.trusts(metadata)):
            check_client(head.parameters)
        check_paired(offer.capability, head.parameters)
        call = Call(
            need=need,
            head=head.head,
            raw=head.raw,
            request_id=f"{head.id[:_NAMED]}#{next(self._numbers)}",
            deadline=deadline_of(head, deadline),
            metadata=texts,
            sequence=sequence_of(head.parameters) if offer.sequence else None,
            regions=self._find_regions(head.head) if _REGION in head.head else {},
            trace=trace,
        )
        return Accepted(call, offer, head)

    def accepting(self) -> AbstractContextManager[trio.CancelScope]:
        """A scope that is cancelled once the replica drains."""
        return self._dispatcher.accepting()

    def execution(self, accepted: Accepted, consumer: Consumer, name: str) -> Execution:
        """The request, ready to be started; name: of its span in a trace."""
        return Execution(self._dispatcher, accepted.call, consumer, name)

    def _find_regions(self, head: bytes) -> Mapping[str, Any]:
        """The registered regions that the tensors of a request name, ready to be sent on."""
        try:
            tensors = scan_tensor_parameters(head)
        except WireError as error:
            raise InvalidArgument(f"the message is no ModelInferRequest: {error}") from error
        found = {}
        total = 0
        for tensor, parameters in tensors:
            name = parameters.get(REGION)
            if isinstance(name, str) and name:
                region = self._regions.find(name)
                found[name] = attrs.asdict(region)
                total += _size_in(region, parameters)
                if total > self._max_shared_bytes:
                    raise ResourceExhausted(
                        f"tensor {tensor!r}: the request has over {self._max_shared_bytes} bytes in"
                        " shared memory"
                    )
        return found


def scan(body: bytes) -> InferRequestHead:
    """The routing fields of a ModelInferRequest; raises `InvalidArgument` when it is none."""
    try:
        return scan_request(body)
    except WireError as error:
        raise InvalidArgument(f"the message is no ModelInferRequest: {error}") from error


def _size_in(region: RegionRef, parameters: Mapping[str, Attribute]) -> int:
    """The bytes that a tensor has in its region; a size that can't be is for the worker."""
    size = parameters.get(BYTE_SIZE)
    return size if isinstance(size, int) and 0 < size <= region.byte_size else 0


def deadline_of(head: InferRequestHead, call_deadline: float) -> float:
    """The earlier of the call's deadline and the request's own `timeout`, in microseconds."""
    timeout = head.parameters.get("timeout")
    if timeout is None:
        return call_deadline
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not timeout:
        return call_deadline
    if not 0 < timeout <= _MAX_TIMEOUT_US:
        raise InvalidArgument(f"parameter 'timeout' is {timeout}: it is a number of microseconds")
    return min(call_deadline, trio.current_time() + timeout / 1e6)
