"""What an engine is: the `Engine` protocol, and the values that cross it.

Whatever generates text or encodes it is served by `anyserve.engines.serving` once it has this
form; docs/engines/own.md shows one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import attrs

from anyserve.capability import Attribute
from anyserve.engines.prompts import Chat, Message, Prompt
from anyserve.engines.sampling import BASIC, Sampling
from anyserve.errors import Unimplemented
from anyserve.pairs import Rendezvous

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "BASIC",
    "About",
    "Chat",
    "Delta",
    "Engine",
    "Half",
    "Message",
    "Prompt",
    "Sampling",
    "TokenLogprob",
    "Usage",
    "Vectors",
]

Vectors: TypeAlias = "npt.NDArray[np.float32]"
"""FP32 [n, d], a row a text."""


@attrs.define  # frozen costs four times as much to make, and each token makes one
class Usage:
    """Tokens of one text so far."""

    prompt_tokens: int
    output_tokens: int
    """Those that the text was resumed from are counted."""
    cached_tokens: int | None = None
    """Of the prompt's: not computed again. None where the engine doesn't know."""


@attrs.frozen
class TokenLogprob:
    """A token and how likely it was."""

    token_id: int
    token: bytes
    """Its text, which may be a part of a character."""
    logprob: float
    """The natural logarithm of its probability."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, `top_logprobs` of them; theirs is empty."""


@attrs.define  # as `Usage`
class Delta:
    """A piece of a text, whole characters always; the last one of each text has a finish reason."""

    text: str
    usage: Usage
    finish_reason: str | None = None
    """`stop`: the model or a stop string ended it; `length`: max_tokens or the context did."""
    token_ids: tuple[int, ...] = ()
    """Where `return_token_ids` is asked for: exactly those whose text is complete in this piece.

    Text that is held back, for an unfinished character or what may become a stop string, brings
    its ids when it comes. So the prompt and all ids so far are always a state to resume from. The
    ids of a stop string and of the model's own end are not given.
    """
    index: int = 0
    """Which of the `n` texts this belongs to."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Where `logprobs` is asked for: of the tokens in this piece."""


@attrs.frozen
class About:
    """What an engine says of itself once its model is loaded."""

    model: str
    """As requests name it, and as the offer's attribute `model`."""
    max_context: int
    """Tokens of prompt and text together; for texts to embed, their longest in its own unit."""
    slots: int = 64
    """Requests at once."""
    sampling: frozenset[str] = BASIC
    """The `Sampling` parameters that it obeys. Others are refused before they reach it."""
    chat: bool = False
    """`generate` takes a `Chat`, not raw prompts alone."""
    tools: bool = False
    """A chat may have tools."""
    resumable: bool = False
    """`generate` takes `resume`, and gives `token_ids` where `return_token_ids` asks for them."""
    samples: bool = False
    """`generate` gives all `n` texts itself; else it is called once for each."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict)
    """More that requests may ask the offer for."""


class Engine(Protocol):
    """Generates texts, or embeds them, or both; what a subclass leaves out it can't do."""

    about: About

    def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of the text that continues `prompt`, as they come.

        resume: ids of tokens that the text begins with and that somebody has already. The text
            goes on after them; `max_tokens` and the usage count them.
        request_id: names the request in logs, those of the engine too; it need not be unique.

        Waits for the model, bounded by the caller's scope; a reader that is slow holds the text
        up. Cancelled or closed by `aclose`, the engine gives the text up at once, before its
        first token too. Raises `InvalidArgument` for what the model can't do, `Unavailable` when
        the engine is closing or gone, `Internal` for its faults.
        """
        raise Unimplemented(f"{self.about.model} generates no text")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of `texts`, FP32 [n, d].

        Waits for the model, bounded by the caller's scope; cancelled, nobody else's texts are
        disturbed. Raises as `generate` does.
        """
        raise Unimplemented(f"{self.about.model} embeds no text")

    async def health(self) -> None:
        """Raises `Unavailable` when a request would fail now.

        Waits for an answer of the model's server, if there is one, a few seconds at most.
        """

    def others(self) -> int:
        """Requests that a server which it asks has of others, running or waiting; 0 where there is
        none, or where that isn't known. Answers at once."""
        return 0


@runtime_checkable
class Half(Protocol):
    """An engine that may be half of a pair: prompts are computed by one, texts made by another."""

    def at(self, rendezvous: Rendezvous) -> Engine:
        """The same engine, for a text whose other half is met there."""
        ...
