"""The built-in `decode`: real text from a local model, whole or streamed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from anyserve.app import App
from anyserve.engines.cores import spare_cores
from anyserve.engines.options import count
from anyserve.engines.serving import text_app
from anyserve.engines.text.engine import TextEngine
from anyserve.engines.text.settings import SYSTEM_PROMPT, TextSettings


def create_app(
    model: str | None = None,
    slots: str = "8",
    context: str = "2048",
    threads: str | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> App:
    """An app that serves `decode` from the GGUF file `model`, by default SmolLM2-135M-Instruct.

    `TextSettings` explains the options. Raises `ValueError` for options out of range.
    """
    settings = TextSettings(
        model=Path(model) if model else None,
        slots=count("slots", slots, 1, 64),
        context=count("context", context, 128, 2**20),
        threads=count("threads", threads, 1, 1024) if threads else spare_cores(),
        system_prompt=system_prompt,
    )
    return text_app(partial(TextEngine.open, settings))
