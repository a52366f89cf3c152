"""The text engine: a local model whose slots are shared by Trio tasks, a thread for each text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from anyserve.engines.interface import About, Delta, Engine, EngineLoad
from anyserve.engines.prompts import Chat, Prompt, check_prompt
from anyserve.engines.sampling import BASIC, Sampling
from anyserve.engines.text.constraints import check_json_schema, constraint
from anyserve.engines.text.deltas import error_from, prompt_left, read_chunk
from anyserve.engines.text.gate import PromptGate
from anyserve.engines.text.handover import Bell, Handover
from anyserve.engines.text.native import NativeServer
from anyserve.engines.text.settings import TextSettings, model_name
from anyserve.errors import InvalidArgument, Unavailable

SAMPLING = BASIC | {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "json_schema",
}
"""What can be asked of this engine."""
AHEAD = 32
"""Pieces that a text may be ahead of its reader before its thread waits. What the native side
computes meanwhile is bounded by the slot's context."""
_SEEDS = 2**32 - 1
"""The native side has that many; one number more means a random one."""


@attrs.define(eq=False)
class _Generation:
    """One text on its way: what its thread does, and what it gives."""

    body: bytes
    chat: bool
    length: int
    """Characters of the prompt."""
    deltas: Handover[Delta]
    gate: PromptGate
    token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _computing: int = 0
    """Characters of the prompt that the gate counts."""
    _lost: BaseException | None = None
    """What the native side would have lost: also Trio's `Cancelled`."""

    async def enter(self) -> None:
        await self.gate.enter(self.length)
        self._computing = self.length

    def leave(self, left: int = 0) -> None:
        """Tell the gate that only that many characters are still to be computed."""
        if left < self._computing:
            self.gate.leave(self._computing - left)
            self._computing = left

    def on_chunk(self, data: bytes) -> bool:
        """Hand a chunk over to Trio, in the native call's thread; True ends the native call.

        The native side loses exceptions, so they are kept here for `run` to raise.
        """
        try:
            trio.from_thread.check_cancelled()
            chunk = json.loads(data)
            left = prompt_left(chunk)
            if left is not None:
                self.token.run_sync_soon(self.leave, int(left * self.length))
            delta = read_chunk(chunk)
            if delta is not None:
                self.deltas.put(delta)
        except BaseException as failure:
            self._lost = failure
            return True
        return False

    def run(self, native: NativeServer) -> None:
        """Run to the end, in a thread. Raises what the native side or the hand-over raised."""
        native.run(self.body, self.chat, self.on_chunk)
        if self._lost is not None:
            raise self._lost


@attrs.define(eq=False)
class TextEngine(Engine):
    """A loaded model. Made by `TextEngine.open`."""

    settings: TextSettings
    about: About
    _native: NativeServer
    _nursery: trio.Nursery
    _slots: trio.CapacityLimiter
    """One token a native slot: what waits natively for a slot can't be cancelled."""
    _gate: PromptGate = attrs.field(factory=PromptGate)
    _bell: Bell = attrs.field(factory=Bell)
    _closing: bool = False

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: TextSettings) -> AsyncIterator[TextEngine]:
        """Load the model, serve with it, and unload it at the end.

        Waits for the loading, which nothing in this process can bound or cancel (it holds the
        GIL), and at the end for the texts still on their way, which are cancelled first.
        Raises `CannotLoad`; errors of the body come in an exception group.
        """
        native = await trio.to_thread.run_sync(NativeServer.load, settings)
        try:
            async with cls.serving(native, settings) as engine:
                yield engine
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(native.close)

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, native: NativeServer, settings: TextSettings
    ) -> AsyncIterator[TextEngine]:
        """Serve with a model that was loaded with `settings`, and leave it loaded at the end.

        Waits and raises as `open` does, but for the loading.
        """
        async with trio.open_nursery() as nursery:
            about = About(
                model=model_name(native.model),
                max_context=native.context,
                slots=settings.slots,
                sampling=SAMPLING,
                chat=True,
            )
            slots = trio.CapacityLimiter(settings.slots)
            engine = cls(settings, about, native, nursery, slots)
            try:
                yield engine
            finally:
                engine._closing = True
                nursery.cancel_scope.cancel()

    def load(self) -> EngineLoad:
        """Texts that have a slot, and those that wait for one."""
        slots = self._slots.statistics()
        return EngineLoad(
            running=slots.borrowed_tokens,
            waiting=slots.tasks_waiting,
            free_slots=self.settings.slots - slots.borrowed_tokens,
        )

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of the text that continues `prompt`: see `Engine.generate`.

        Waits for a free slot and then for the model. Given up, the slot serves the next as soon
        as the native side has let go: after the batch that it is computing.
        """
        check_prompt(prompt)
        length = _length(prompt, self.about.max_context)
        if self._closing:
            raise Unavailable("the text engine is closing")
        body = _body(prompt, sampling, self.settings.system_prompt)
        chat = isinstance(prompt, Chat)
        deltas: Handover[Delta] = Handover(self._bell, AHEAD)
        generation = _Generation(body, chat, length, deltas, self._gate)
        # The engine's nursery owns the thread, so that leaving here never waits for it.
        self._nursery.start_soon(self._serve, generation, name="text generation")
        pieces: list[str] = []
        finished = False
        try:
            async for delta in deltas:
                if sampling.json_schema is not None and not sampling.stop:
                    pieces.append(delta.text)
                    _check_kept(pieces, delta.finish_reason)
                finished = delta.finish_reason is not None
                yield delta
        finally:
            generation.scope.cancel()
        if not finished:
            raise Unavailable("the text engine is closing")

    async def _serve(self, generation: _Generation) -> None:
        """Run one text in a thread, and tell its reader how it ended."""
        try:
            with generation.scope:
                await generation.enter()
                await trio.to_thread.run_sync(generation.run, self._native, limiter=self._slots)
        except Exception as error:
            generation.deltas.end(error_from(error))
        finally:
            generation.leave()
            generation.deltas.end()


def _length(prompt: Prompt, max_context: int) -> int:
    """The prompt's length in characters. Raises `InvalidArgument` when it is far longer than the
    context: to count its tokens takes time with its length in bytes."""
    texts = [prompt] if isinstance(prompt, str) else [m.content or "" for m in prompt.messages]
    length = sum(map(len, texts))
    if length > max_context * _MOST_CHARACTERS:
        raise InvalidArgument(
            f"the prompt has {length} characters, but the context holds {max_context} tokens"
        )
    return length


_MOST_CHARACTERS = 64
"""Characters a token: well over what tokenizers make of any text that is worth reading."""


def _check_kept(pieces: list[str], finish_reason: str | None) -> None:
    """Raise if a finished text is no JSON: what the native side can't hold a text to, it lets go
    without a word."""
    if finish_reason != "stop":
        return
    try:
        json.loads("".join(pieces))
    except (ValueError, RecursionError):
        raise InvalidArgument("json_schema: the engine can't hold a text to it") from None


def _body(prompt: Prompt, sampling: Sampling, system_prompt: str) -> bytes:
    """The request as llama.cpp's server takes it."""
    body: dict[str, Any] = {
        "stream": True,
        "return_progress": True,  # chunks during prefill too, so that it can be cancelled
        "timings_per_token": True,  # token counts in every chunk
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "stop": list(sampling.stop),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _SEEDS
    if sampling.json_schema is not None:
        check_json_schema(sampling.json_schema)
        body["grammar"] = constraint(sampling.json_schema)
    if isinstance(prompt, str):
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": m.role, "content": m.content} for m in prompt.messages]
        if system_prompt and prompt.messages[0].role != "system":
            body["messages"].insert(0, {"role": "system", "content": system_prompt})
        body["reasoning_format"] = "none"  # all that the model says is the text
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidArgument(f"the request can't be written as JSON: {error}") from None
