"""The `Backend` of the scheduler: what the fleet serves, through the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyserve_protos.infer_wire import InferRequestHead, join_request

from anyserve.capability import power
from anyserve.errors import AnyServeError, Internal, Unavailable
from anyserve.http.backend import Answers, Offered
from anyserve.replica.handback import MODEL_INFER, MODEL_STREAM_INFER
from anyserve.stream_errors import unwrapped
from anyserve_scheduler.fleet import ReplicaState
from anyserve_scheduler.gateway.forwarding import Forwarding
from anyserve_scheduler.gateway.incoming import incoming
from anyserve_scheduler.gateway.service import GatewayService
from anyserve_scheduler.gateway.ways import Ways


class GatewayBackend:
    """See `Backend`."""

    relays = False

    def __init__(self, ways: Ways, service: GatewayService) -> None:
        self.ways = ways
        self._service = service

    def offers(self) -> Sequence[Offered]:
        """See `Backend`; what is loaded when it is wanted is served too."""
        found = {}
        for view in self.ways.registry.fleet().replicas.values():
            for offer in view.offers.values():
                if not offer.loadable or offer.promising:
                    key = power(offer.capability)
                    found[key] = Offered(offer.capability, offer.decoupled)
        return sorted(found.values(), key=lambda each: each.capability.name)

    def ready(self) -> bool:
        """See `Backend`."""
        views = self.ways.registry.fleet().replicas.values()
        return not self.ways.intake.draining and any(
            view.state is ReplicaState.LIVE for view in views
        )

    def missing(self, error: AnyServeError) -> AnyServeError:
        """See `Backend`."""
        return self.ways.missing(error)

    def infer(
        self,
        request: InferRequestHead,
        *,
        once: bool,
        metadata: Mapping[str, str],
        deadline: float,
        answers: Answers,
    ) -> ForwardedInference:
        """See `Backend`."""
        inference = ForwardedInference(once, answers)
        inference.start(self.ways, request, metadata, deadline)
        return inference

    async def call(self, method: str, message: Any) -> Any:
        """See `Backend`."""
        return await self._service.ask(method, message)


class ForwardedInference:
    """One request that came by HTTP; see `Running`."""

    _forwarding: Forwarding | None = None
    _over = False
    _responses = 0

    def __init__(self, once: bool, answers: Answers) -> None:
        self._once = once
        self._answers = answers

    def start(
        self,
        ways: Ways,
        head: InferRequestHead,
        metadata: Mapping[str, str],
        deadline: float,
    ) -> None:
        """Send it on; what is wrong with it is told as its end."""
        path = MODEL_INFER if self._once else MODEL_STREAM_INFER
        try:
            if ways.intake.draining:
                raise Unavailable("the scheduler is stopping")
            body = join_request(head.head, head.raw)
            request = incoming(path, body, head, tuple(metadata.items()), deadline, ways.links)
            self._forwarding = Forwarding(ways, request, self)
            self._forwarding.start()
        except AnyServeError as error:
            self._forwarding = None
            self.on_end(error)

    def cancel(self) -> None:
        """See `Running`."""
        if not self._over:
            self._over = True
            if self._forwarding is not None:
                self._forwarding.cancel()

    def hold(self) -> None:
        """See `Running`."""
        if not self._over and self._forwarding is not None:
            self._forwarding.hold()

    def resume(self) -> None:
        """See `Running`."""
        if not self._over and self._forwarding is not None:
            self._forwarding.resume()

    def on_messages(self, messages: Sequence[bytes]) -> None:
        """See `Client`."""
        for message in messages:
            if self._over:
                return
            response = message if self._once else unwrapped(message)
            if isinstance(response, AnyServeError):
                assert self._forwarding is not None
                self._forwarding.cancel(response)
                self.on_end(response)
            else:
                self._responses += 1
                self._answers.on_response(response)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Client`."""
        if self._over:
            return
        self._over = True
        if error is None and self._once and self._responses != 1:
            error = Internal(f"the replica gave {self._responses} answers, not one")
        self._answers.on_end(error)
