"""What handlers take and give: `Request`, `Response`, and the `Context` of one request."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs
import trio

from anyserve.capability import Attribute
from anyserve.errors import FailedPrecondition
from anyserve.traces import TRACEPARENT, trace_id

if TYPE_CHECKING:  # a replica has no arrays, and numpy is a third of its memory
    import numpy.typing as npt


@attrs.frozen
class Sequence:
    """Where a request stands in its sequence."""

    id: int | str
    start: bool
    end: bool


@attrs.frozen
class Request:
    """One request. Its tensors are read-only numpy arrays, BYTES as object arrays of `bytes`."""

    capability: str
    """The capability that serves it."""
    inputs: Mapping[str, npt.NDArray[Any]]
    id: str = ""
    """As the client sent it; empty when it sent none."""
    parameters: Mapping[str, Attribute] = attrs.field(factory=dict)
    """Request parameters of KServe v2: bool, int, float or str."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.inputs[name]

    def __contains__(self, name: object) -> bool:
        return name in self.inputs

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def get(self, name: str, default: Any = None) -> Any:
        """The input `name`, or `default` where the request has none."""
        return self.inputs.get(name, default)


OutputValue: TypeAlias = "npt.ArrayLike | str | bytes | list[str] | list[bytes]"


@attrs.frozen
class Response:
    """One response.

    Outputs are numpy arrays, or anything that becomes one: numbers and nested lists of them, a
    `str` or `bytes` (BYTES of shape [1]), a list of those (BYTES of shape [n]).
    """

    outputs: Mapping[str, OutputValue] = attrs.field(factory=dict)
    parameters: Mapping[str, Attribute] = attrs.field(factory=dict)
    tokens: int = 1
    """How many tokens a decoupled handler's response has: the fleet is shown tokens per second."""
    prompt_tokens: int = 0
    """How many the prompt had, said with one of a decoupled handler's responses, for metrics."""


@attrs.frozen
class Result:
    """One response to a request, as whoever sent the request sees it."""

    id: str
    """That of the request."""
    outputs: Mapping[str, npt.NDArray[Any]]
    """Read-only arrays; BYTES are object arrays of `bytes`."""
    parameters: Mapping[str, Attribute]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.outputs[name]


class Caller(Protocol):
    """The way from a handler to other capabilities; see `Context.call` and `Context.stream`."""

    async def call(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute],
        version: str,
    ) -> Result: ...

    def stream(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute],
        version: str,
    ) -> AsyncGenerator[Result, None]: ...


@attrs.define
class Context:
    """What a handler may know of the request that it serves, beside its tensors."""

    request_id: str
    """The client's id, or one made up by the replica: it names the request in logs and traces."""
    deadline: float = math.inf
    """Absolute, on `trio.current_time()`'s clock; the handler is cancelled when it passes."""
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    """gRPC metadata of the call, as text."""
    sequence: Sequence | None = None
    """Set for handlers declared with `sequence=True`."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)
    """What the handler runs in. Not for handlers: it goes on to other requests."""
    caller: Caller | None = attrs.field(default=None, repr=False)
    """None where a handler is run by hand, with nobody to call."""

    async def call(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute] | None = None,
        *,
        version: str = "",
    ) -> Result:
        """Have another capability answer once: here, or else anywhere in the fleet.

        version: that of the capability, a number as text; empty for any.

        Waits for the answer, for as long as this request has; its end, or cancelling this, ends
        what was called. Raises the `AnyServeError` that the other ended with, `NotFound` where
        nobody offers the capability in that version, `FailedPrecondition` where calls are nested
        too deep, `ResourceExhausted` where 64 calls of this request are open, and `InvalidArgument`
        for a version that is none.
        """
        return await self._caller().call(capability, inputs, parameters or {}, version)

    def stream(
        self,
        capability: str,
        inputs: Mapping[str, OutputValue],
        parameters: Mapping[str, Attribute] | None = None,
        *,
        version: str = "",
    ) -> AsyncGenerator[Result, None]:
        """The same for any number of responses, as they come; use it with `aclosing`."""
        return self._caller().stream(capability, inputs, parameters or {}, version)

    def _caller(self) -> Caller:
        if self.caller is None:
            raise FailedPrecondition("this handler runs alone: there is nobody to call")
        return self.caller

    @property
    def traceparent(self) -> str | None:
        """W3C trace context of this request, for the handler's own tools to go on with.

        Their spans become children of the replica's. None where the request is in no trace.
        """
        return self.metadata.get(TRACEPARENT)

    @property
    def cancelled(self) -> bool:
        """Whether the caller is gone; async handlers are told by Trio, blocking ones ask here."""
        return self._scope.cancel_called

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Puts the request id on every line, and the trace's where the request is in one."""
        traceparent = self.traceparent
        names = {"request_id": self.request_id}
        if traceparent is not None:
            names["trace_id"] = trace_id(traceparent)
        return logging.LoggerAdapter(logging.getLogger("anyserve.handler"), names)
