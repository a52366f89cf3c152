"""Requests that have exactly one response."""

from __future__ import annotations

from collections.abc import Callable

from anyserve.errors import AnyServeError, Unimplemented
from anyserve.replica.exchange import Reply
from anyserve.replica.inference import Accepted, Inference

Done = Callable[[Reply | AnyServeError], None]
"""Takes the one response, whose buffers it releases, or what the request ended with instead."""


class UnaryInference:
    """One such request, from its start to its response."""

    def __init__(self, inference: Inference, accepted: Accepted, method: str, done: Done) -> None:
        self._execution = inference.execution(accepted, self, method)
        self._done = done
        self._reply: Reply | None = None

    def start(self) -> None:
        """Begin; `done` is called later. Raises what `Execution.start` does."""
        self._execution.start()

    def cancel(self) -> None:
        """Nobody waits for the response any more."""
        self._execution.cancel()
        self._drop()

    def on_reply(self, reply: Reply) -> None:
        """See `Consumer`."""
        if self._reply is None:
            self._reply = reply
            return
        reply.release()
        self._drop()
        error = Unimplemented(
            f"{self._execution.offer.name!r} answers more than once: call it with ModelStreamInfer"
        )
        self._execution.cancel(error)
        self._done(error)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Consumer`."""
        if error is not None:
            self._drop()
            self._done(error)
        elif self._reply is not None:
            reply, self._reply = self._reply, None
            self._done(reply)
        else:
            name = self._execution.offer.name
            self._done(Unimplemented(f"{name!r} gave no answer: call it with ModelStreamInfer"))

    def _drop(self) -> None:
        if self._reply is not None:
            self._reply.release()
            self._reply = None
