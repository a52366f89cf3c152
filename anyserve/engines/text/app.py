"""The built-in `decode`: real text from a local model, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from anyserve.app import App
from anyserve.engines.cores import spare_cores
from anyserve.engines.options import count
from anyserve.engines.text.engine import TextEngine
from anyserve.engines.text.fields import INPUTS, OUTPUTS, read_request
from anyserve.engines.text.settings import SYSTEM_PROMPT, TextSettings
from anyserve.messages import Context, Request, Response


def create_app(
    model: str | None = None,
    slots: str = "8",
    context: str = "2048",
    threads: str | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> App:
    """An app that serves `decode` from the GGUF file `model`, by default SmolLM2-135M-Instruct.

    `text_input` is a raw prompt that the model continues; `messages` is a chat, JSON text of a
    list of `{"role", "content"}`, that goes through the model's template. Without `stream` there
    is one response with the whole text; with it there is one for each piece and a last one with
    the finish reason. The prompt is not part of the text unless `exclude_input_in_output` is
    false. `TextSettings` explains the options. Raises `ValueError` for options out of range.
    """
    settings = TextSettings(
        model=Path(model) if model else None,
        slots=count("slots", slots, 1, 64),
        context=count("context", context, 128, 2**20),
        threads=count("threads", threads, 1, 1024) if threads else spare_cores(),
        system_prompt=system_prompt,
    )
    app = App()
    engines: list[TextEngine] = []

    @app.lifespan
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with TextEngine.open(settings) as engine:
            engines.append(engine)
            app.describe("decode", model=engine.model, max_context=engine.max_context)
            yield
            engines.clear()

    @app.capability(
        "decode",
        inputs=INPUTS,
        outputs=OUTPUTS,
        decoupled=True,
        concurrency=settings.slots,
        idempotent=True,
    )
    async def decode(request: Request, context: Context) -> AsyncIterator[Response]:
        asked = read_request(request)
        async with aclosing(engines[0].generate(asked.prompt, asked.sampling)) as deltas:
            pieces = [asked.prompt] if asked.echo and isinstance(asked.prompt, str) else []
            async for delta in deltas:
                if asked.stream:
                    yield asked.response(delta.text, delta)
                else:
                    pieces.append(delta.text)
                    if delta.finish_reason is not None:
                        yield asked.response("".join(pieces), delta)

    return app
