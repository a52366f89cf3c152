"""`POST /v1/embeddings`: texts to vectors, as numbers or as base64."""

from __future__ import annotations

import math
from array import array
from binascii import b2a_base64
from typing import Any

import msgspec
from anyserve_protos.response_outputs import ResponseReader

from anyserve.errors import AnyServeError, Internal
from anyserve.http.exchange import Exchange
from anyserve.http.openai.answers import Reader
from anyserve.http.openai.errors import Refused, body_of, refused
from anyserve.http.openai.models import Target
from anyserve.http.openai.schemas import EmbeddingRequest
from anyserve.transport.rpc import Buffer

SHORTENED = "matryoshka"
"""The attribute of an offer whose vectors may be cut."""
_SIZE = 4


class Embeddings:
    """The answer to one such request; `Answers` of the capability."""

    def __init__(
        self,
        exchange: Exchange,
        target: Target,
        request: EmbeddingRequest,
        responses: ResponseReader,
    ) -> None:
        """responses: reads those of all requests."""
        self._exchange = exchange
        self._target = target
        self._request = request
        self._reader = Reader(responses)
        self._outputs: dict[str, bytes] = {}

    def on_response(self, message: Buffer) -> None:
        """See `Answers`."""
        try:
            self._outputs = self._reader.outputs(message)
        except Internal as error:
            self.on_end(error)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answers`."""
        if self._exchange.over:
            return
        try:
            if error is not None:
                raise refused(error)
            self._exchange.respond(200, self._answer())
        except Refused as refusal:
            self._exchange.respond(refusal.status, body_of(refusal))

    def _answer(self) -> bytes:
        request = self._request
        data = self._outputs.get("embedding")
        count = len(request.texts)
        if not data or len(data) % (_SIZE * count):
            raise refused(Internal(f"the capability gave no vectors for {count} texts"))
        width = len(data) // count
        vectors = [data[start : start + width] for start in range(0, len(data), width)]
        if request.dimensions is not None and request.dimensions != width // _SIZE:
            size = self._shortened(request.dimensions, width // _SIZE)
            vectors = [_shorten(vector, size) for vector in vectors]
        encode = _base64 if request.encoding_format == "base64" else _numbers
        tokens = int.from_bytes(self._outputs.get("num_input_tokens", b"")[:4], "little")
        return msgspec.json.encode(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(vectors)
                ],
                "model": self._target.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    def _shortened(self, asked: int, native: int) -> int:
        if self._target.offer.get(SHORTENED) is True and 0 < asked < native:
            return asked
        raise Refused(
            f"dimensions: {self._target.model} gives {native}, not {asked}", param="dimensions"
        )


def _shorten(vector: bytes, dimensions: int) -> bytes:
    """The first dimensions of a vector, of length 1 again."""
    values = array("f", vector[: dimensions * _SIZE])
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return array("f", [value / length for value in values]).tobytes()


def _base64(vector: bytes) -> str:
    """Little-endian FP32, as it is on KServe's wire."""
    return b2a_base64(vector, newline=False).decode()


def _numbers(vector: bytes) -> Any:
    return array("f", vector).tolist()
