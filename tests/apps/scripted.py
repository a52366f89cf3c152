"""An engine that says what its prompt tells it to: the last message is JSON of a script.

{"pieces": ["a", "b"], "pause": 0.1, "after": "unavailable", "reason": "length"}: the pieces, so
many seconds before each, what happens after them (an error's name, or "wait" for ever), and the
reason of the end. Other text comes back word by word.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import trio

from anyserve import errors
from anyserve.app import App
from anyserve.engines.interface import About, Delta, Engine, TokenLogprob, Usage
from anyserve.engines.prompts import Chat, Prompt
from anyserve.engines.sampling import NAMES, Sampling
from anyserve.engines.serving import text_app
from anyserve.messages import Context, Request, Response


class Scripted(Engine):
    """See above; its tokens are the pieces, with their places as ids."""

    def __init__(self, asked_by_others: int) -> None:
        self._others = asked_by_others

    about = About(
        model="scripted",
        max_context=1000,
        slots=32,
        sampling=frozenset(NAMES),
        chat=True,
        tools=True,
        resumable=True,
    )

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        text = prompt.messages[-1].content if isinstance(prompt, Chat) else prompt
        script = _script(text or "")
        pieces = script["pieces"][: sampling.max_tokens]
        given = len((text or "").split())
        for place in range(len(resume), len(pieces)):
            await trio.sleep(script.get("pause", 0))
            logprob = TokenLogprob(place, pieces[place].encode(), -0.5)
            yield Delta(
                pieces[place],
                Usage(given, place + 1, given // 2),
                token_ids=(place,),
                logprobs=(logprob,) if sampling.logprobs else (),
            )
        after = script.get("after")
        if after == "wait":
            await trio.sleep_forever()
        if after is not None:
            raise getattr(errors, after)("as the script says")
        yield Delta("", Usage(given, len(pieces), given // 2), script.get("reason", "stop"))

    def others(self) -> int:
        return self._others


def _script(text: str) -> dict[str, Any]:
    try:
        script = json.loads(text)
    except ValueError:
        script = None
    if isinstance(script, dict):
        return script
    words = text.split()
    return {"pieces": [word + " " * (place < len(words)) for place, word in enumerate(words, 1)]}


@asynccontextmanager
async def _open(others: int) -> AsyncIterator[Engine]:
    yield Scripted(others)


def create_app(others: str = "0") -> App:
    """The app, and beside it `embedding`: the length of a text, and 1.

    others: requests of others that the engine says its server has.
    """
    app = text_app(partial(_open, int(others)))

    @app.capability("embedding", inputs={"text_input": "BYTES[-1]"}, model="lengths")
    async def embedding(request: Request, context: Context) -> Response:
        vectors = [[len(text), 1] for text in request["text_input"]]
        return Response(outputs={"embedding": np.array(vectors, np.float32)})

    return app
