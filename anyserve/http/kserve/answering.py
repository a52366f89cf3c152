"""Answers of inference on their way from the backend to the client: whole, or as a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from anyserve_protos.infer_wire import InferRequestHead

from anyserve.errors import AnyServeError, Internal
from anyserve.http import metadata
from anyserve.http.backend import Answers, Backend, Running
from anyserve.http.errors import http_status
from anyserve.http.exchange import Exchange
from anyserve.http.heads import Fields
from anyserve.transport.rpc import Buffer

_EVENTS = "text/event-stream"
_COMMENT = b": \n\n"
"""An event that is none, so that silence is broken."""

_log = logging.getLogger("anyserve.http")

Write = Callable[[bytes], tuple[bytes, str, Fields]]
"""Makes of a ModelInferResponse a body, its content type and its headers."""


def begin(
    exchange: Exchange, backend: Backend, request: InferRequestHead, answers: Answers, once: bool
) -> None:
    """Run a request for an exchange; its client's going and slow reading pass through."""
    running: Running = backend.infer(
        request,
        once=once,
        metadata=metadata.passed(exchange.request),
        deadline=metadata.deadline(exchange.request),
        answers=answers,
    )
    if not exchange.over:
        exchange.on_gone = running.cancel
        exchange.on_hold, exchange.on_resume = running.hold, running.resume


class Whole:
    """The one response as the answer."""

    def __init__(self, exchange: Exchange, write: Write) -> None:
        self._exchange = exchange
        self._write = write
        self._message = b""

    def on_response(self, message: Buffer) -> None:
        """See `Answers`."""
        self._message = bytes(message)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answers`."""
        if error is None:
            try:
                body, content_type, fields = self._write(self._message)
            except Exception:
                _log.exception("the answer of %s can't be written", self._exchange.request.path)
                error = Internal("the answer can't be written as JSON")
            else:
                self._exchange.respond(200, body, content_type, fields)
                return
        self._exchange.refuse(http_status(error), error.message)


class Events:
    """Each response as a server-sent event. What fails before the first one is a status."""

    def __init__(self, exchange: Exchange, write: Callable[[bytes], bytes]) -> None:
        """write: makes JSON of a ModelInferResponse."""
        self._exchange = exchange
        self._write = write

    def on_response(self, message: Buffer) -> None:
        """See `Answers`."""
        try:
            text = self._write(bytes(message))
        except Exception:
            _log.exception("an answer of %s can't be written", self._exchange.request.path)
            text = _error("the answer can't be written as JSON")
        self._send(text)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answers`."""
        exchange = self._exchange
        if error is not None and not exchange.started:
            exchange.refuse(http_status(error), error.message)
            return
        if error is not None:
            self._send(_error(error.message))
        elif not exchange.started:
            exchange.start(200, _EVENTS)
        exchange.end()

    def _send(self, text: bytes) -> None:
        exchange = self._exchange
        if not exchange.started:
            exchange.start(200, _EVENTS, (("cache-control", "no-cache"),), idle=_COMMENT)
        exchange.send(b"data: " + text + b"\n\n")


def _error(message: str) -> bytes:
    return msgspec.json.encode({"error": message})
