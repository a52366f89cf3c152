"""The routes of OpenAI's API."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import msgspec
from anyserve_protos.infer_wire import InferRequestHead
from anyserve_protos.response_outputs import ResponseReader

from anyserve.burst import now
from anyserve.errors import InvalidArgument
from anyserve.http import metadata
from anyserve.http.backend import Backend
from anyserve.http.exchange import Exchange
from anyserve.http.openai.embeddings import Embeddings
from anyserve.http.openai.errors import Refused, body_of, error_body, refused
from anyserve.http.openai.forms import ChatForm, CompletionForm, Form, Identity
from anyserve.http.openai.generation import Generation, Streamed, Whole
from anyserve.http.openai.models import Models
from anyserve.http.openai.requests import of_chat, of_completion, of_embedding
from anyserve.http.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    TextRequest,
    decode,
)
from anyserve.http.routes import Routes

TEXT, EMBEDDING = "decode", "embedding"
"""The capabilities that serve: these, or descendants of theirs."""
_PASSED_ON = ("traceparent", "tracestate")
_MAX_ID = 128


class OpenAIDoor:
    """Takes requests of OpenAI's API to the capabilities of a backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._models = Models(backend, now)
        self._responses = ResponseReader()

    def add_to(self, routes: Routes) -> None:
        """Serve `/v1/...`."""
        routes.add("GET", "/v1/models", self.models)
        routes.add("GET", "/v1/models/{model*}", self.model)
        for path, handler in (
            ("/v1/chat/completions", self.chat),
            ("/v1/completions", self.completion),
            ("/v1/embeddings", self.embeddings),
        ):
            routes.add("POST", path, _answering(handler))
        routes.add_errors("/v1/", error_body)

    def models(self, exchange: Exchange) -> None:
        """All models."""
        listing = {"object": "list", "data": self._models.listing()}
        exchange.respond(200, msgspec.json.encode(listing))

    def model(self, exchange: Exchange) -> None:
        """One of them."""
        try:
            model = self._models.description(exchange.request.parameters["model"])
        except Refused as error:
            exchange.respond(error.status, body_of(error))
        else:
            exchange.respond(200, msgspec.json.encode(model))

    def chat(self, exchange: Exchange) -> None:
        """`POST /v1/chat/completions`."""
        request = decode(ChatRequest, exchange.request.body)
        request.check()
        target = self._models.target(request.model, TEXT)
        form = ChatForm(
            _identity("chatcmpl", request.model),
            tools=request.uses_tools,
            usage=request.include_usage,
        )
        asked = of_chat(target, request, _request_id(exchange))
        self._generate(exchange, request, form, [asked])

    def completion(self, exchange: Exchange) -> None:
        """`POST /v1/completions`."""
        request = decode(CompletionRequest, exchange.request.body)
        request.check()
        target = self._models.target(request.model, TEXT)
        prompts, samples, identity = request.prompts, request.n or 1, _request_id(exchange)
        echoes = [prompt for prompt in prompts for _ in range(samples)] if request.echo else []
        form = CompletionForm(
            _identity("cmpl", request.model), echoes=echoes, usage=request.include_usage
        )
        asked = [of_completion(target, request, prompt, identity) for prompt in prompts]
        self._generate(exchange, request, form, asked)

    def embeddings(self, exchange: Exchange) -> None:
        """`POST /v1/embeddings`."""
        request = decode(EmbeddingRequest, exchange.request.body)
        target = self._models.target(request.model, EMBEDDING)
        running = self._backend.infer(
            of_embedding(target, request.texts, _request_id(exchange)),
            once=True,
            metadata=_metadata(exchange),
            deadline=_deadline(exchange),
            answers=Embeddings(exchange, target, request, self._responses),
        )
        if not exchange.over:
            exchange.on_gone = running.cancel

    def _generate(
        self, exchange: Exchange, request: TextRequest, form: Form, asked: list[InferRequestHead]
    ) -> None:
        deadline = _deadline(exchange)
        samples = request.n or 1
        generation: Generation
        if request.stream:
            generation = Streamed(
                exchange,
                form,
                samples=samples,
                prompts=len(asked),
                usage=request.include_usage,
            )
        else:
            generation = Whole(exchange, form, samples=samples, prompts=len(asked))
        generation.start(self._backend, asked, _metadata(exchange), deadline, self._responses)


def _answering(handler: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """`handler`, whose refusals are answers."""

    def handle(exchange: Exchange) -> None:
        identity = exchange.request.headers.get("x-request-id")
        if identity is not None and len(identity) <= _MAX_ID:
            exchange.fields += (("x-request-id", identity),)
        try:
            handler(exchange)
        except Refused as error:
            exchange.respond(error.status, body_of(error))

    return handle


def _identity(kind: str, model: str) -> Identity:
    return Identity(f"{kind}-{random.getrandbits(96):024x}", int(time.time()), model)


def _request_id(exchange: Exchange) -> str:
    """What the client calls its request, by the header `X-Request-Id`; empty where it does not."""
    identity = exchange.request.headers.get("x-request-id", "")
    return identity if len(identity) <= _MAX_ID else ""


def _deadline(exchange: Exchange) -> float:
    try:
        return metadata.deadline(exchange.request)
    except InvalidArgument as error:
        raise refused(error) from None


def _metadata(exchange: Exchange) -> dict[str, str]:
    headers = exchange.request.headers
    return {name: headers[name] for name in _PASSED_ON if name in headers}
