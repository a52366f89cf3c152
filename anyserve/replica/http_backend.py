"""The `Backend` of a replica: its own capabilities, and by the scheduler those of the fleet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import AnyServeError
from anyserve.http.backend import Answers, Offered
from anyserve.replica.anywhere import AnywhereRequest
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call, Reply
from anyserve.replica.inference import Inference
from anyserve.replica.service import Ask
from anyserve.traces import at_door


class ReplicaBackend:
    """See `Backend`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        inference: Inference,
        ask: Ask,
        is_ready: Callable[[], bool],
    ) -> None:
        """ask: calls methods of the inference service that have one request and one reply."""
        self.dispatcher = dispatcher
        self.inference = inference
        self._ask = ask
        self._is_ready = is_ready

    def offers(self) -> Sequence[Offered]:
        """See `Backend`."""
        offers = [pool.offer for pool in self.dispatcher.pools if pool.serving]
        return [Offered(offer.capability, offer.decoupled) for offer in offers]

    def ready(self) -> bool:
        """See `Backend`."""
        return self._is_ready()

    @property
    def relays(self) -> bool:
        """See `Backend`."""
        return self.inference.handback is not None

    def missing(self, error: AnyServeError) -> AnyServeError:
        """See `Backend`; a replica knows what it has."""
        return error

    def infer(
        self,
        request: InferRequestHead,
        *,
        once: bool,
        metadata: Mapping[str, str],
        deadline: float,
        answers: Answers,
    ) -> HttpInference:
        """See `Backend`."""
        inference = HttpInference(self, once, metadata, deadline, answers)
        inference.begin(request)
        return inference

    async def call(self, method: str, message: Any) -> Any:
        """See `Backend`."""
        return await self._ask(method, message, ())


class HttpInference(AnywhereRequest):
    """One request that came by HTTP; see `Running`."""

    def __init__(
        self,
        backend: ReplicaBackend,
        once: bool,
        metadata: Mapping[str, str],
        deadline: float,
        answers: Answers,
    ) -> None:
        super().__init__(
            backend.dispatcher,
            backend.inference.handback,
            once=once,
            metadata=metadata,
            deadline=deadline,
            trace=at_door(metadata.items()),
            name="http",
        )
        self._inference = backend.inference
        self._answers = answers
        self._held = False
        self._owed = 0
        """Responses that came while the client had no room, and that give no credit yet."""

    def accept(self, head: InferRequestHead) -> Call:
        """See `AnywhereRequest`."""
        metadata = self._metadata.items()
        return self._inference.accept(head, metadata, self._deadline, self._trace).call

    def hold(self) -> None:
        """See `Running`."""
        self._held = True

    def resume(self) -> None:
        """See `Running`."""
        self._held = False
        owed, self._owed = self._owed, 0
        if owed:
            self.consumed(owed)

    def finish(self, error: AnyServeError | None) -> None:
        """See `AnywhereRequest`."""
        self._answers.on_end(error)

    def respond(self, reply: Reply) -> None:
        """See `AnywhereRequest`."""
        message = b"".join(reply.pieces)
        reply.release()
        self._answers.on_response(message)
        if self._held:
            self._owed += 1
        else:
            self.consumed(1)
