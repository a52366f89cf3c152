"""What the native side answers, chunk by chunk: progress, a piece of text, or an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from anyserve.engines.interface import Delta, TokenLogprob, Usage
from anyserve.engines.text.vocabulary import Vocabulary
from anyserve.errors import (
    AnyServeError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)


def prompt_left(chunk: dict[str, Any]) -> float | None:
    """What share of the prompt is still to be computed, from 0 to 1; None where `chunk` says
    nothing of it."""
    progress = chunk.get("prompt_progress")
    return None if progress is None else 1 - progress["processed"] / progress["total"]


@attrs.define
class ChunkReader:
    """Reads the chunks of one text."""

    vocabulary: Callable[[], Vocabulary]
    """Called when it is needed, since it is seldom."""
    resumed: int = 0
    """Tokens at the end of the prompt that are the text's already."""
    over: bool = False
    """Those are all that it may have; what the native side adds is not part of it."""
    _seen: int = 0
    """Tokens of the text so far."""
    _ids: list[int] = attrs.field(factory=list)
    """Of tokens without a text, such as a special one, until the next text."""
    _logprobs: list[TokenLogprob] = attrs.field(factory=list)

    def read(self, chunk: dict[str, Any]) -> Delta | None:
        """The piece of text in a `chunk`; None where there is only progress.

        Raises the `AnyServeError` that an error chunk stands for.
        """
        if "error" in chunk:
            raise error_of(chunk["error"])
        choices = chunk.get("choices")
        if not choices:
            return None
        choice = choices[0]
        text, reason, timings = choice["text"], choice["finish_reason"], chunk["timings"]
        if choice["logprobs"] is not None:
            self._logprobs += [_logprob(token) for token in choice["logprobs"]["content"]]
        told = chunk.get("__verbose")
        if told is not None:
            self._read_ids(told["tokens"], timings["predicted_n"] - self._seen, text)
        self._seen = timings["predicted_n"]
        if not text and reason is None:
            return None
        usage = self._usage(timings)
        if self.over:
            return Delta("", attrs.evolve(usage, output_tokens=self.resumed), "length")
        if told is None and choice["logprobs"] is None:
            return Delta(text, usage, reason)
        # At the model's own end, what had no text was that end.
        ids, logprobs = ([], []) if reason == "stop" else (self._ids, self._logprobs)
        self._ids, self._logprobs = [], []
        return Delta(text, usage, reason, tuple(ids), logprobs=tuple(logprobs))

    def _read_ids(self, ids: Sequence[int], count: int, text: str) -> None:
        """Keep the ids of the `count` tokens that `text` came with, of which `ids` is the last.

        Where they can't be found there are none, since any would be another text's. What tells
        of progress has no token, but an id.
        """
        if not count:
            return
        missing = count - len(ids)
        if missing > 0 and ids:
            found = self.vocabulary().before(ids[-1], missing, text.encode())
            ids = () if found is None else (*found, *ids)
        self._ids += ids

    def _usage(self, timings: dict[str, Any]) -> Usage:
        prompt = timings["cache_n"] + timings["prompt_n"] - self.resumed
        return Usage(prompt, timings["predicted_n"] + self.resumed, min(timings["cache_n"], prompt))


def _logprob(token: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(
        token["id"],
        bytes(token["bytes"]),
        token["logprob"],
        tuple(_logprob(other) for other in token.get("top_logprobs", ())),
    )


_KINDS: dict[str, type[AnyServeError]] = {
    "invalid_request_error": InvalidArgument,
    "not_supported_error": Unimplemented,
    "unavailable_error": Unavailable,
}
"""By the `type` that llama.cpp gives its errors; any other is a fault of ours."""


def error_of(error: dict[str, Any]) -> AnyServeError:
    """The error of our tree for llama.cpp's `{code, message, type}`."""
    if error.get("type") == "exceed_context_size_error":
        return InvalidArgument(
            f"the prompt has {error['n_prompt_tokens']} tokens,"
            f" but the context holds {error['n_ctx']}"
        )
    kind = _KINDS.get(str(error.get("type")), Internal)
    return kind(f"the text engine says: {error.get('message', 'nothing')}")


def error_from(exception: Exception) -> AnyServeError:
    """The error of our tree for what a native call raised instead of answering.

    It raises ValueError for what a constraint makes impossible.
    """
    if isinstance(exception, AnyServeError):
        return exception
    if isinstance(exception, ValueError):
        return InvalidArgument(f"the text engine says: {exception}")
    if isinstance(exception, MemoryError):
        return ResourceExhausted("the text engine is out of memory")
    return Internal(f"the text engine failed: {type(exception).__name__}: {exception}")
