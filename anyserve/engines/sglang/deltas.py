"""What SGLang streams, as deltas: text that is new, and the ids whose text is complete in it."""

from __future__ import annotations

import attrs

from anyserve.engines.interface import Delta, TokenLogprob, Usage
from anyserve.engines.sglang.client import error_of
from anyserve.engines.sglang.protocol import Chunk, ChunkWithIds, Finish, Logprob, Meta
from anyserve.engines.sglang.tokenizer import Tokenizer
from anyserve.errors import Unavailable


@attrs.define
class ChunkReader:
    """Reads the chunks of one text."""

    incremental: bool
    """Chunks have what is new; else each has all so far."""
    tokenizer: Tokenizer | None = None
    """Where ids or logprobs are asked for."""
    resumed: int = 0
    """Tokens at the end of the prompt that are the text's already."""
    ended: bool = False
    """SGLang has said that the text is at its end."""
    _length: int = 0
    """Characters so far; so for tokens and their logprobs."""
    _tokens: int = 0
    _told: int = 0
    _text: str = ""
    """Held, since its last token ends inside a character; and so the others."""
    _ids: list[int] = attrs.field(factory=list)
    _logprobs: list[TokenLogprob] = attrs.field(factory=list)

    def read(self, chunk: Chunk) -> Delta | None:
        """The delta that `chunk` brings; None where it has nothing that may be given yet.

        Raises what an error or an abort in it stands for, `Unavailable` for a chunk without sense.
        """
        if chunk.error is not None:
            self.ended = True
            raise error_of(chunk.error.code, chunk.error.message)
        meta = chunk.meta_info
        if meta is None:
            raise Unavailable("SGLang sends a piece of text without what belongs to it")
        finish = meta.finish_reason
        self.ended = finish is not None
        if finish is not None and finish.type == "abort":
            raise error_of(finish.status_code or 503, finish.message or "the text is given up")
        self._text += self._new_text(chunk.text)
        if isinstance(chunk, ChunkWithIds):
            self._ids += self._new_ids(chunk.output_ids, finish)
        if meta.output_token_logprobs:
            self._logprobs += self._new_logprobs(meta, finish)
        if finish is None and (not self._text or self._inside_a_character()):
            return None
        prompt = meta.prompt_tokens - self.resumed
        cached = None if meta.cached_tokens is None else min(meta.cached_tokens, prompt)
        usage = Usage(prompt, meta.completion_tokens + self.resumed, cached)
        delta = Delta(
            self._text,
            usage,
            None if finish is None else finish.type,
            tuple(self._ids),
            logprobs=tuple(self._logprobs),
        )
        self._text, self._ids, self._logprobs = "", [], []
        return delta

    def _inside_a_character(self) -> bool:
        return bool(self._ids) and self.tokenizer is not None and self.tokenizer.inside(self._ids)

    def _new_text(self, text: str) -> str:
        if self.incremental:
            return text
        new, self._length = text[self._length :], max(len(text), self._length)
        return new

    def _new_ids(self, ids: list[int], finish: Finish | None) -> list[int]:
        """Those that are new, without the model's own end."""
        new = ids if self.incremental else ids[self._tokens :]
        self._tokens = len(ids)
        return new[:-1] if new and _ends(finish, new[-1]) else new

    def _new_logprobs(self, meta: Meta, finish: Finish | None) -> list[TokenLogprob]:
        told, top = meta.output_token_logprobs, meta.output_top_logprobs
        first = 0 if self.incremental else self._told
        self._told = len(told)
        new = [
            self._logprob(token, (top[at] if at < len(top) else None) or [])
            for at, token in enumerate(told[first:], first)
        ]
        return new[:-1] if new and _ends(finish, new[-1].token_id) else new

    def _logprob(self, token: Logprob, top: list[Logprob]) -> TokenLogprob:
        logarithm, number, text = token
        part = self.tokenizer.parts.get(number) if self.tokenizer is not None else None
        return TokenLogprob(
            number,
            (text or "").encode() if part is None else part,
            0.0 if logarithm is None else logarithm,
            tuple(self._logprob(other, []) for other in top),
        )


def _ends(finish: Finish | None, token: int) -> bool:
    """Whether `token` is the model's own end of the text, rather than a part of it."""
    return finish is not None and finish.matched == token
