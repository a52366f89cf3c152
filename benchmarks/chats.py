"""The chats that doors are asked for, what the model in them says, and when.

A chat of `SHORT` tokens comes at once, a longer one a token each `GAP`. Only the standard library.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

SHORT = 8
"""Tokens of a chat that is complete at once."""
GAP = 0.005
"""Seconds between two tokens of a longer one."""
MODEL = "mock"
PATH = "/v1/chat/completions"
PROMPT = "Tell me how bridges are built, for readers who know nothing of it."


def body(tokens: int, *, stream: bool, model: str = MODEL) -> bytes:
    """What asks for a chat of so many tokens."""
    request: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    if stream:
        request["stream"] = True
    return json.dumps(request).encode()


def token(number: int) -> str:
    """The text of a token."""
    return f"t{number} "


def text(tokens: int) -> str:
    """All that is said."""
    return "".join(map(token, range(tokens)))


def due(tokens: int, now: float) -> Iterator[float]:
    """When each token of a chat that is asked for now is to be said.

    The first one at once, so that its way is all it takes, and those after it at moments of the
    chat's own.
    """
    gap = 0.0 if tokens == SHORT else GAP
    apart = random.random() * gap
    return (now + number * gap + (apart if number else 0.0) for number in range(tokens))
