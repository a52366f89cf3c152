"""One chat or completion on its way: its requests to a capability, and its answer.

A task is not needed for it: whoever serves calls back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from anyserve_protos.infer_wire import InferRequestHead
from anyserve_protos.response_outputs import ResponseReader

from anyserve.errors import AnyServeError, Internal
from anyserve.http.backend import Backend, Running
from anyserve.http.exchange import Exchange
from anyserve.http.openai.answers import Piece, Reader
from anyserve.http.openai.errors import Refused, body_of, refused
from anyserve.http.openai.forms import Choice, Form
from anyserve.transport.rpc import Buffer

EVENTS = "text/event-stream"
_DONE = b"data: [DONE]\n\n"
_SILENCE = b": still working\n\n"
_NO_CACHE = (("cache-control", "no-cache"),)


class Generation:
    """All texts of one answer; each prompt is a request of its own to the capability."""

    def __init__(self, exchange: Exchange, form: Form, *, samples: int, prompts: int) -> None:
        """samples: texts for each prompt."""
        self.exchange = exchange
        self.form = form
        self.samples = samples
        self.counts = TokenCounts()
        self._left = prompts
        self._running: list[Running] = []
        exchange.on_gone = self.cancel

    def start(
        self,
        backend: Backend,
        requests: Sequence[InferRequestHead],
        metadata: Mapping[str, str],
        deadline: float,
        responses: ResponseReader,
    ) -> None:
        """Send the requests; what is wrong with them is the answer.

        responses: reads those of all requests.
        """
        for number, request in enumerate(requests):
            if self.exchange.over:
                return
            source = _Source(self, number, Reader(responses))
            running = backend.infer(
                request, once=False, metadata=metadata, deadline=deadline, answers=source
            )
            self._running.append(running)
        if self.exchange.over:
            self.cancel()

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        running, self._running = self._running, []
        for request in running:
            request.cancel()

    def hold(self) -> None:
        """The client reads slowly."""
        for request in self._running:
            request.hold()

    def resume(self) -> None:
        """It reads on."""
        for request in self._running:
            request.resume()

    def on_piece(self, piece: Piece) -> None:
        """A piece of a text has come."""
        raise NotImplementedError

    def on_done(self) -> None:
        """All texts are complete."""
        raise NotImplementedError

    def on_failed(self, error: Refused) -> None:
        """One of the requests has failed, which ends the others."""
        self.exchange.respond(error.status, body_of(error))

    def piece(self, piece: Piece, prompt: int) -> None:
        """A piece has come whose index is that among the texts of its prompt."""
        self.counts.add(piece, prompt)
        piece.index += prompt * self.samples
        self.on_piece(piece)

    def ended(self, error: AnyServeError | None) -> None:
        """One of the requests has ended."""
        if self.exchange.over:
            return
        if error is not None:
            self.on_failed(refused(error))
            self.cancel()
            return
        self._left -= 1
        if not self._left:
            self._running.clear()
            self.on_done()


class _Source:
    """One of the requests."""

    def __init__(self, generation: Generation, prompt: int, reader: Reader) -> None:
        self._generation = generation
        self._prompt = prompt
        self._reader = reader

    def on_response(self, message: Buffer) -> None:
        """See `Answers`."""
        generation = self._generation
        if generation.exchange.over:
            return
        try:
            piece = self._reader.read(message)
            if piece is not None and piece.index >= generation.samples:
                raise Internal(f"text {piece.index} was not asked for")
        except Internal as error:
            generation.ended(error)
            return
        if piece is not None:
            generation.piece(piece, self._prompt)

    def on_end(self, error: AnyServeError | None) -> None:
        """See `Answers`."""
        self._generation.ended(error)


class Whole(Generation):
    """An answer that is given when it is complete."""

    def __init__(self, exchange: Exchange, form: Form, *, samples: int, prompts: int) -> None:
        super().__init__(exchange, form, samples=samples, prompts=prompts)
        self._choices = [Choice() for _ in range(samples * prompts)]

    def on_piece(self, piece: Piece) -> None:
        """See `Generation`."""
        choice = self._choices[piece.index]
        choice.text.append(piece.text)
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        if piece.logprobs:
            choice.logprobs += msgspec.json.decode(piece.logprobs, type=list)

    def on_done(self) -> None:
        """See `Generation`."""
        for choice in self._choices:
            choice.finish_reason = choice.finish_reason or "stop"
        body = self.form.whole(self._choices, self.counts.usage())
        self.exchange.respond(200, body)


class Streamed(Generation):
    """An answer that is given as it comes, by server-sent events."""

    def __init__(
        self, exchange: Exchange, form: Form, *, samples: int, prompts: int, usage: bool
    ) -> None:
        """usage: whether the token counts are told at the end."""
        super().__init__(exchange, form, samples=samples, prompts=prompts)
        self._usage = usage
        self._unfinished = set(range(samples * prompts))
        exchange.on_hold, exchange.on_resume = self.hold, self.resume
        exchange.after_silence(self._begin)

    def on_piece(self, piece: Piece) -> None:
        """See `Generation`."""
        if not self.exchange.started:
            self._begin()
        if piece.finish_reason:
            self._unfinished.discard(piece.index)
        self.exchange.send(self.form.chunks(piece))

    def on_done(self) -> None:
        """See `Generation`."""
        exchange = self.exchange
        if not exchange.started:
            self._begin()
        for index in sorted(self._unfinished):  # whoever serves it says nothing of reasons
            exchange.send(self.form.chunks(Piece("", "stop", index=index)))
        if self._usage:
            exchange.send(self.form.usage(self.counts.usage()))
        exchange.send(_DONE)
        exchange.end()

    def on_failed(self, error: Refused) -> None:
        """See `Generation`; what has begun ends with an event that says so, and no `[DONE]`."""
        if not self.exchange.started:
            super().on_failed(error)
            return
        self.exchange.send(b"data: " + body_of(error) + b"\n\n")
        self.exchange.end()

    def _begin(self) -> None:
        self.exchange.start(200, EVENTS, _NO_CACHE, idle=_SILENCE)


class TokenCounts:
    """Tokens of all prompts and texts of one answer."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], Piece] = {}
        """The last piece by its prompt and its place among the texts of that."""

    def add(self, piece: Piece, prompt: int) -> None:
        """Count a piece, whose index is that among the texts of its prompt."""
        self._last[prompt, piece.index] = piece

    def usage(self) -> dict[str, Any]:
        """As OpenAI's API has it: a prompt counts once, however many texts continue it."""
        prompts = {prompt: piece for (prompt, _), piece in self._last.items()}
        given = sum(piece.prompt_tokens for piece in prompts.values())
        made = sum(piece.output_tokens for piece in self._last.values())
        usage: dict[str, Any] = {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
        }
        cached = [piece.cached_tokens for piece in prompts.values()]
        known = [count for count in cached if count is not None]
        if known:
            usage["prompt_tokens_details"] = {"cached_tokens": sum(known)}
        return usage
