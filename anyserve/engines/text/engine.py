"""The text engine: a local model whose slots are shared by Trio tasks, a thread for each text."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from anyserve.engines.interface import About, Delta, Engine
from anyserve.engines.prompts import Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.stops import StopStrings
from anyserve.engines.text import requests
from anyserve.engines.text.deltas import ChunkReader, error_from, prompt_left
from anyserve.engines.text.gate import PromptGate
from anyserve.engines.text.handover import Bell, Handover
from anyserve.engines.text.native import NativeServer
from anyserve.engines.text.settings import TextSettings, model_name
from anyserve.errors import InvalidArgument, Unavailable

AHEAD = 32
"""Pieces that a text may be ahead of its reader before its thread waits. What the native side
computes meanwhile is bounded by the slot's context."""


@attrs.define(eq=False)
class _Generation:
    """One text on its way: what its thread does, and what it gives."""

    body: bytes
    length: int
    """Characters of the prompt."""
    reader: ChunkReader
    stops: StopStrings | None
    """The native side knows none: it loses text that a stop string may begin with when the text
    ends in it."""
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
            delta = self.reader.read(chunk)
            if delta is not None and self.stops is not None:
                delta = self.stops.add(delta)
            if delta is None:
                return False
            self.deltas.put(delta)
        except BaseException as failure:
            self._lost = failure
            return True
        return delta.finish_reason is not None

    def run(self, native: NativeServer) -> None:
        """Run to the end, in a thread. Raises what the native side or the hand-over raised."""
        native.run(self.body, self.on_chunk)
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
                model=model_name(native.model.path),
                max_context=native.model.context,
                slots=settings.slots,
                sampling=requests.SAMPLING,
                chat=native.model.template is not None,
                tools=native.model.template is not None and native.model.template.tools,
                resumable=True,
            )
            slots = trio.CapacityLimiter(settings.slots)
            engine = cls(settings, about, native, nursery, slots)
            try:
                yield engine
            finally:
                engine._closing = True
                nursery.cancel_scope.cancel()

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
        text = requests.prompt_text(prompt, self._native.model, self.settings.system_prompt)
        if self._closing:
            raise Unavailable("the text engine is closing")
        generation = _Generation(
            requests.encode(text, sampling, resume),
            len(text),
            ChunkReader(
                lambda: self._native.model.vocabulary,
                resumed=len(resume),
                over=len(resume) >= sampling.max_tokens,
            ),
            StopStrings(sampling.stop) if sampling.stop else None,
            Handover(self._bell, AHEAD),
            self._gate,
        )
        # The engine's nursery owns the thread, so that leaving here never waits for it.
        self._nursery.start_soon(self._serve, generation, name="text generation")
        pieces: list[str] = []
        finished = False
        try:
            async for delta in generation.deltas:
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


def _check_kept(pieces: list[str], finish_reason: str | None) -> None:
    """Raise if a finished text is no JSON: what the native side can't hold a text to, it lets go
    without a word."""
    if finish_reason != "stop":
        return
    try:
        json.loads("".join(pieces))
    except (ValueError, RecursionError):
        raise InvalidArgument("json_schema: the engine can't hold a text to it") from None
