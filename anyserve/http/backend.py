"""What a door needs of whoever serves: a replica, or a scheduler for its fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.capability import Capability
from anyserve.errors import AnyServeError
from anyserve.transport.rpc import Buffer


@attrs.frozen
class Offered:
    """One capability that is served now."""

    capability: Capability
    decoupled: bool
    """Whether one request may have any number of responses."""


class Answers(Protocol):
    """Whoever wants what a request is answered with; called in Trio's thread, and never waits.

    Not after it has cancelled the request.
    """

    def on_response(self, message: Buffer) -> None:
        """The next ModelInferResponse, valid during the call."""
        ...

    def on_end(self, error: AnyServeError | None) -> None:
        """There are no more, or the request has failed."""
        ...


class Running(Protocol):
    """A request on its way. Nothing of it does anything once it has ended."""

    def cancel(self) -> None:
        """Nobody wants the rest."""
        ...

    def hold(self) -> None:
        """The client reads slowly: have the handler wait. Some responses may still come."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


class Backend(Protocol):
    """Who serves."""

    def offers(self) -> Sequence[Offered]:
        """All that is served now: by this replica, or by the fleet of this scheduler."""
        ...

    def ready(self) -> bool:
        """Whether requests are taken."""
        ...

    @property
    def relays(self) -> bool:
        """Whether what is not offered here may be served elsewhere, so that it is worth asking."""
        ...

    def missing(self, error: AnyServeError) -> AnyServeError:
        """What to say where `error` says that `offers` does not have something.

        It is `Unavailable` as long as more of the fleet may be known in a moment.
        """
        ...

    def infer(
        self,
        request: InferRequestHead,
        *,
        once: bool,
        metadata: Mapping[str, str],
        deadline: float,
        answers: Answers,
    ) -> Running:
        """Run a ModelInferRequest.

        once: whether exactly one response is wanted; else any number may come. metadata: as of a
        gRPC call. deadline: absolute, on Trio's clock. All that is wrong with it is told as its
        end, which may come before this returns.
        """
        ...

    async def call(self, method: str, message: Any) -> Any:
        """Call another method of `GRPCInferenceService` by its name, with betterproto2 messages.

        Waits as that method does; raises `AnyServeError`.
        """
        ...
