"""What the native side answers, chunk by chunk: progress, a piece of text, or an error."""

from __future__ import annotations

from typing import Any

from anyserve.engines.interface import Delta, Usage
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


def read_chunk(chunk: dict[str, Any]) -> Delta | None:
    """The piece in a streamed `chunk` of a completion or a chat; None where it has only progress.

    Raises the `AnyServeError` that an error chunk stands for.
    """
    if "error" in chunk:
        raise error_of(chunk["error"])
    choices = chunk.get("choices")
    if not choices:
        return None
    choice = choices[0]
    text = choice["text"] if "text" in choice else choice["delta"].get("content")
    reason = choice["finish_reason"]
    if not text and reason is None:
        return None
    return Delta(text or "", _usage(chunk["timings"]), reason)


def _usage(timings: dict[str, Any]) -> Usage:
    cached = timings["cache_n"]
    return Usage(cached + timings["prompt_n"], timings["predicted_n"], cached)


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

    It raises ValueError for what a chat template or a constraint makes impossible.
    """
    if isinstance(exception, AnyServeError):
        return exception
    if isinstance(exception, ValueError):
        return InvalidArgument(f"the text engine says: {exception}")
    if isinstance(exception, MemoryError):
        return ResourceExhausted("the text engine is out of memory")
    return Internal(f"the text engine failed: {type(exception).__name__}: {exception}")
