"""An app with an engine that has no model: 256 tokens, one each 5 ms, resumable."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from anyserve.engines.interface import About, Delta, Engine, Usage
from anyserve.engines.prompts import Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.serving import text_app

TOKENS = 256
GAP = 0.005
"""Seconds."""


class MockEngine(Engine):
    """Its tokens are their places in the text, which says who it is; it has no prefill."""

    about = About(model="mock", max_context=1 << 20, slots=256, resumable=True)

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        began = trio.current_time()
        for count, token in enumerate(range(len(resume), TOKENS)):
            await trio.sleep_until(began + count * GAP)
            reason = "length" if token == TOKENS - 1 else None
            yield Delta(f"{os.getpid()} ", Usage(1, token + 1), reason, token_ids=(token,))

    async def health(self) -> None:
        """It has nothing that could fail."""


@asynccontextmanager
async def open_engine() -> AsyncIterator[Engine]:
    """Load it."""
    yield MockEngine()


app = text_app(open_engine)
