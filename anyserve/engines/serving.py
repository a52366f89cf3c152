"""Serving an engine: any `Engine` becomes an app that gives text, or one that embeds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import trio

from anyserve.app import App
from anyserve.engines.fields import INPUTS, OUTPUTS, TextRequest, read_request, read_texts
from anyserve.engines.interface import About, Engine
from anyserve.engines.prompts import Chat
from anyserve.engines.samples import Joiner, generating
from anyserve.errors import AnyServeError, Unimplemented
from anyserve.messages import Context, Request, Response

OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]
"""Loads an engine, and unloads it at the end of the block."""
WATCH_INTERVAL = 1.0
"""Seconds between two questions for an engine's health and for what others have it do."""
FindEngine = Callable[[], Engine]
"""The engine that serves now; called when a request comes, so after loading."""


def text_app(open_engine: OpenEngine, capability: str = "decode") -> App:
    """An app that serves `capability` with the texts of one engine, which it opens and closes.

    What is known of the offer before the engine is loaded can be said by `App.describe`.
    """
    app = App()
    declare_text(app, capability, _opened(app, capability, open_engine))
    return app


def embedding_app(
    open_engine: OpenEngine, capability: str = "embedding", *, dimensions: int = -1
) -> App:
    """An app that serves `capability` with the vectors of one engine: see `text_app` and
    `declare_embedding`."""
    app = App()
    engine = _opened(app, capability, open_engine)
    declare_embedding(app, capability, engine, dimensions=dimensions)
    return app


def _opened(app: App, capability: str, open_engine: OpenEngine) -> FindEngine:
    """Have the app's lifespan open the engine; what finds it then."""
    engines: list[Engine] = []

    @app.lifespan
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with open_engine() as engine, trio.open_nursery() as nursery:
            engines.append(engine)
            describe(app, capability, engine.about)
            nursery.start_soon(watch_engine, app, capability, engine)
            yield
            engines.clear()
            nursery.cancel_scope.cancel()

    return lambda: engines[0]


def declare_text(app: App, capability: str, engine: FindEngine) -> None:
    """Declare `capability`, served by `engine`'s texts: for apps with engines of their own.

    `text_input` is a raw prompt that the model continues, `messages` a chat; `fields` has all
    inputs and outputs. Without `stream` there is one response with the whole text; with it there
    is one for each piece, and the last has the finish reason. The app's lifespan opens the engine
    and calls `describe`.
    """

    @app.capability(
        capability,
        inputs=INPUTS,
        outputs=OUTPUTS,
        decoupled=True,
        idempotent=True,
    )
    async def text(request: Request, context: Context) -> AsyncIterator[Response]:
        asked = read_request(request)
        serving = engine()
        check(asked, serving.about)
        told: dict[int, int] = {}  # tokens of each text
        joiner = Joiner(str(asked.prompt) if asked.echo else "")
        async with generating(serving, asked, context.request_id) as deltas:
            async for delta in deltas:
                piece = delta if asked.stream else joiner.add(delta)
                if piece is not None:
                    tokens, is_first = piece.usage.output_tokens, not told
                    before = told.get(piece.index, len(asked.resume))
                    told[piece.index] = tokens
                    yield asked.response(piece, tokens - before, is_first=is_first)


def declare_embedding(
    app: App, capability: str, engine: FindEngine, *, dimensions: int = -1
) -> None:
    """Declare `capability`, served by `engine`'s vectors: `text_input` BYTES [n] to `embedding`
    FP32 [n, dimensions]. The app's lifespan opens the engine and calls `describe`.

    dimensions: of a vector; -1 where only the model knows.
    """

    @app.capability(
        capability,
        inputs={"text_input": "BYTES[-1]"},
        outputs={"embedding": f"FP32[-1,{dimensions}]"},
        idempotent=True,
    )
    async def embedding(request: Request, context: Context) -> Response:
        return Response(outputs={"embedding": await engine().embed(read_texts(request))})


def describe(app: App, capability: str, about: About) -> None:
    """Say in the offer of `capability` what its engine has found out: its model, its context and
    further attributes, how many requests it takes at once, and whether it resumes."""
    attributes = {
        **about.attributes,
        **({"tools": True} if about.tools else {}),
        "model": about.model,
        "max_context": about.max_context,
    }
    app.describe(capability, concurrency=about.slots, resumable=about.resumable, **attributes)


async def watch_engine(app: App, capability: str, engine: Engine) -> None:
    """Refuse requests for `capability` while `engine` says that they would fail, and count those
    that others have its server do.

    Asks every `WATCH_INTERVAL` seconds until cancelled; for the app's lifespan.
    """
    while True:
        reason = ""
        try:
            await engine.health()
        except AnyServeError as error:
            reason = error.message
        app.set_health(capability, reason)
        app.set_others(capability, engine.others())
        await trio.sleep(WATCH_INTERVAL)


def check(asked: TextRequest, about: About) -> None:
    """Raise `Unimplemented` naming what the engine can't do, rather than have it ignored."""
    obeyed = about.sampling | {"return_token_ids"} if about.resumable else about.sampling
    for name in sorted(asked.sampling.asked() - obeyed):
        raise Unimplemented(f"{name}: {about.model} can't do that")
    if asked.resume and not about.resumable:
        raise Unimplemented(f"resume_token_ids: {about.model} can't do that")
    if isinstance(asked.prompt, Chat):
        if not about.chat:
            raise Unimplemented(f"messages: {about.model} has no chat template")
        if asked.prompt.tools and not about.tools:
            raise Unimplemented(f"tools: the chat template of {about.model} takes none")
