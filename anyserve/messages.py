"""What handlers take and give: `Request`, `Response`, and the `Context` of one request."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from anyserve.capability import Attribute

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
    cancel_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)

    @property
    def cancelled(self) -> bool:
        """Whether the caller is gone; async handlers are told by Trio, blocking ones ask here."""
        return self.cancel_scope.cancel_called

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Puts the request id on every line."""
        return logging.LoggerAdapter(
            logging.getLogger("anyserve.handler"), {"request_id": self.request_id}
        )
