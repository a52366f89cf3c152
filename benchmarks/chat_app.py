"""An app with an engine that has no model and says the chats of `benchmarks.chats`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from anyserve.engines.interface import BASIC, About, Delta, Engine, Usage
from anyserve.engines.prompts import Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.serving import text_app
from benchmarks import chats

_PROMPT_TOKENS = 16


class ChatEngine(Engine):
    """What a chat costs beside it is the server's."""

    about = About(
        model=chats.MODEL,
        max_context=1 << 20,
        slots=256,
        sampling=BASIC | {"temperature"},
        chat=True,
    )

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        tokens = sampling.max_tokens
        for number, due in enumerate(chats.due(tokens, trio.current_time())):
            if due > trio.current_time():
                await trio.sleep_until(due)
            reason = "length" if number == tokens - 1 else None
            yield Delta(chats.token(number), Usage(_PROMPT_TOKENS, number + 1), reason)

    async def health(self) -> None:
        """It has nothing that could fail."""


@asynccontextmanager
async def open_engine() -> AsyncIterator[Engine]:
    """Load it."""
    yield ChatEngine()


app = text_app(open_engine)
