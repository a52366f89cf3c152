"""The built-in `embedding`: real sentence embeddings."""

from __future__ import annotations

from collections.abc import AsyncIterator

from anyserve.app import App
from anyserve.engines.embedding.engine import DIMENSIONS, MAX_CHARACTERS, MODEL, EmbeddingEngine
from anyserve.errors import InvalidArgument
from anyserve.messages import Context, Request, Response


def create_app() -> App:
    """An app that serves `embedding`: `text_input` BYTES [n] to `embedding` FP32 [n, 512].

    Its attribute `max_context` is in characters of one text, since the encoder has no notion of
    a context in tokens; it is no less in tokens.
    """
    app = App()
    engines: list[EmbeddingEngine] = []

    @app.lifespan
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with EmbeddingEngine.open() as engine:
            engines.append(engine)
            yield
            engines.clear()

    @app.capability(
        "embedding",
        inputs={"text_input": "BYTES[-1]"},
        outputs={"embedding": f"FP32[-1,{DIMENSIONS}]"},
        concurrency=64,
        idempotent=True,
        model=MODEL,
        max_context=MAX_CHARACTERS,
    )
    async def embedding(request: Request, context: Context) -> Response:
        vectors = await engines[0].embed(_texts(request))
        return Response(outputs={"embedding": vectors})

    return app


def _texts(request: Request) -> list[str]:
    texts = []
    for index, data in enumerate(request["text_input"]):
        try:
            texts.append(data.decode())
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"text_input[{index}]: not UTF-8: {error.reason} at byte {error.start}"
            ) from None
    return texts
