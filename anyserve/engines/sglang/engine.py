"""An engine on one SGLang server: texts by `/generate`, given up by `/abort_request`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import msgspec
import numpy as np
import trio

from anyserve.engines.interface import About, Delta, Engine, Usage, Vectors
from anyserve.engines.prompts import Chat, Prompt
from anyserve.engines.sampling import Sampling
from anyserve.engines.sglang.client import Client
from anyserve.engines.sglang.deltas import ChunkReader
from anyserve.engines.sglang.discovery import (
    Served,
    adds_bos,
    discover,
    find_tokenizer,
    until_ready,
)
from anyserve.engines.sglang.health import Health
from anyserve.engines.sglang.protocol import (
    Chunk,
    ChunkWithIds,
    Embeddings,
    Tokens,
    encode,
)
from anyserve.engines.sglang.stream import TextStream
from anyserve.engines.sglang.tokenizer import Tokenizer
from anyserve.engines.stops import StopStrings
from anyserve.errors import FailedPrecondition, InvalidArgument, Unavailable, Unimplemented
from anyserve.pairs import Rendezvous

_CHUNK = msgspec.json.Decoder(Chunk)
_CHUNK_WITH_IDS = msgspec.json.Decoder(ChunkWithIds)
_ASK_TIME = 60.0
"""Seconds to turn a prompt into tokens, or texts into vectors."""
_MOST_CHARACTERS = 64
"""Characters a token: well over what tokenizers make of any text that is worth reading."""
_SPECIAL = 8
"""Tokens that the server may put around a raw prompt; more than any does."""


@attrs.define(eq=False)
class SglangEngine(Engine):
    """A server that serves. Made by `SglangEngine.attached`."""

    about: About
    served: Served
    client: Client
    monitor: Health
    tokenizer: Tokenizer | None
    strips_bos: bool
    """What the chat template begins with, the server puts before raw prompts itself."""
    rendezvous: Rendezvous | None = None
    """With the other half, where the server is half of a pair: see `at`."""

    @classmethod
    @asynccontextmanager
    async def attached(
        cls,
        client: Client,
        tokenizer: Path | None = None,
        *,
        within: float,
        bootstrap_host: str | None = None,
    ) -> AsyncIterator[SglangEngine]:
        """An engine on a server that runs, or will within `within` seconds.

        tokenizer: a folder with the model's tokenizer files, where the server's own path is not
            one here. bootstrap_host: of a prefill half, where decode halves find it; the
            client's, otherwise.

        From then on the server's health is watched. At the end, texts that are on their way are
        given up. Raises `Unavailable`, `CannotLoad`; errors of the body come in an exception
        group.
        """
        await until_ready(client, within)
        served = await discover(client)
        found = await find_tokenizer(served, tokenizer)
        chats = served.generates and found is not None and found.template is not None
        strips = chats and await adds_bos(client, served)
        async with trio.open_nursery() as nursery:
            monitor = Health(client, served)
            await nursery.start(monitor.run)
            try:
                about = served.about(found, bootstrap_host or client.address.host)
                yield cls(about, served, client, monitor, found, strips)
            finally:
                monitor.fail("the engine is closing")
                client.close()
                nursery.cancel_scope.cancel()

    def at(self, rendezvous: Rendezvous) -> SglangEngine:
        """See `Half.at`; all but the rendezvous is shared."""
        return attrs.evolve(self, rendezvous=rendezvous)

    async def health(self) -> None:
        """Raises `Unavailable` while the server is down, as found out last."""
        self.monitor.check()

    def others(self) -> int:
        """As the server said a moment ago; see `Health.others`."""
        return self.monitor.others

    async def generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        resume: Sequence[int] = (),
        request_id: str = "",
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of the text that continues `prompt`: see `Engine.generate`.

        Given up, the server is told, and has two seconds to say that the text has ended.
        """
        self.monitor.check()
        if not self.served.generates:
            raise Unimplemented(f"{self.about.model} generates no text")
        if self.served.half is not None and self.rendezvous is None:
            raise FailedPrecondition(f"SGLang at {self.client.address} is half of a pair")
        text = self._text(prompt)
        given, room = await self._prompt(text, sampling, resume)
        if room is not None and room <= 0:
            yield Delta("", Usage(len(given) - len(resume), len(resume)), "length")
            return
        rid = f"{request_id[:100]}-{uuid.uuid4().hex}"
        body = encode(
            given,
            sampling,
            rid,
            max_tokens=room,
            low_priority_first=self.served.low_priority_first,
            rendezvous=self.rendezvous,
        )
        with_ids = sampling.return_token_ids
        decode = _CHUNK_WITH_IDS.decode if with_ids else _CHUNK.decode
        reader = ChunkReader(
            self.served.incremental,
            self.tokenizer if with_ids or sampling.logprobs else None,
            len(resume),
        )
        stops = StopStrings(sampling.stop) if sampling.stop else None
        stream = TextStream(self.client, rid)
        with self.monitor.watching(stream):
            try:
                await stream.open(body)
                while True:
                    for event in await stream.receive():
                        delta = reader.read(_decoded(decode, event))
                        if delta is not None and stops is not None:
                            delta = stops.add(delta)
                        if delta is None:
                            continue
                        yield delta
                        if delta.finish_reason is not None:
                            return
            finally:
                await stream.aclose(ended=reader.ended)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of `texts`; waits a minute for them at most. Raises as `generate` does."""
        self.monitor.check()
        if self.served.generates:
            raise Unimplemented(f"{self.about.model} embeds no text")
        body = {"model": self.served.name, "input": list(texts), "encoding_format": "float"}
        with self.monitor.counting(len(texts)):
            found = await self.client.post("/v1/embeddings", body, Embeddings, within=_ASK_TIME)
        if len(found.data) != len(texts):
            raise Unavailable(f"SGLang gives {len(found.data)} vectors for {len(texts)} texts")
        vectors = [vector.embedding for vector in sorted(found.data, key=lambda v: v.index)]
        return np.array(vectors, np.float32).reshape(len(texts), -1)

    def _text(self, prompt: Prompt) -> str:
        most = self.about.max_context * _MOST_CHARACTERS
        if isinstance(prompt, Chat):
            tokenizer = self.tokenizer
            if tokenizer is None or tokenizer.template is None:
                raise Unimplemented("messages: the model has no chat template")
            text = tokenizer.template.render(prompt, most)
            prompt = text.removeprefix(tokenizer.bos) if self.strips_bos else text
        if not prompt:
            raise InvalidArgument("the prompt is empty")
        if len(prompt) > most:
            raise InvalidArgument(
                f"the prompt has {len(prompt)} characters, but the context holds"
                f" {self.about.max_context} tokens"
            )
        return prompt

    async def _prompt(
        self, text: str, sampling: Sampling, resume: Sequence[int]
    ) -> tuple[str | list[int], int | None]:
        """The prompt as it is sent, and how many tokens may be added; None: as many as fit.

        It goes as text, which saves a question, unless the text goes on from tokens or may not
        have room for all that is asked for, which SGLang refuses rather than ends.
        """
        wanted, context = sampling.max_tokens, self.about.max_context
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the prompt is no text: {error.reason}") from None
        if not resume and wanted >= context:
            return text, None
        if not resume and size + _SPECIAL + wanted < context:  # a token has a byte at least
            return text, wanted
        body = {"model": self.served.name, "prompt": text}
        tokens = (await self.client.post("/v1/tokenize", body, Tokens, within=_ASK_TIME)).tokens
        ids = [*tokens, *resume]
        if len(tokens) >= context:
            raise InvalidArgument(
                f"the prompt has {len(tokens)} tokens, but the context holds {context}"
            )
        return ids, min(wanted - len(resume), context - len(ids) - 1)


def _decoded(decode: Callable[[bytes], Chunk], event: bytes) -> Chunk:
    try:
        return decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"SGLang streams what can't be read: {error}") from None
