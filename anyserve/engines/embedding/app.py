"""The built-in `embedding`: real sentence embeddings."""

from __future__ import annotations

from anyserve.app import App
from anyserve.engines.embedding.engine import DIMENSIONS, MAX_CHARACTERS, MODEL, EmbeddingEngine
from anyserve.engines.serving import embedding_app


def create_app() -> App:
    """An app that serves `embedding`: `text_input` BYTES [n] to `embedding` FP32 [n, 512].

    Its attribute `max_context` is in characters of one text, since the encoder has no notion of
    a context in tokens; it is no less in tokens.
    """
    app = embedding_app(EmbeddingEngine.open, dimensions=DIMENSIONS)
    app.describe("embedding", model=MODEL, max_context=MAX_CHARACTERS)
    return app
