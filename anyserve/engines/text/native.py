"""llama.cpp's server inside this process: all that touches `xllamacpp`, and its traps.

Everything here blocks and is called from threads. The package is imported when a model loads.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from anyserve.engines.errors import CannotLoad
from anyserve.engines.templates import ChatTemplate, TemplateError, read_template
from anyserve.engines.text.gguf import Tokenizer, read_tokenizer
from anyserve.engines.text.settings import TextSettings, find_model
from anyserve.engines.text.vocabulary import Vocabulary

log = logging.getLogger("anyserve.engines")

BATCH = 32
"""Tokens that are computed at once: as fast as 512 on a CPU (6 ms each on one core), and the
longest that a prompt can hold up the other texts, or, twice, its own cancellation."""

_ROUNDED_TO = 256
"""The native side rounds a slot's context up to a multiple of that."""

OnChunk = Callable[[bytes], bool]
"""Takes one chunk of JSON; True ends the request and frees its slot. Must not raise: the native
side would end the request without a word."""


@attrs.define
class Model:
    """What is known of the model that is loaded."""

    path: Path
    context: int
    """Tokens of a slot's context: no more than what the model was trained for."""
    template: ChatTemplate | None
    """None where it has none that can be used."""
    bos: str
    """The text of the token that begins a text; empty where there is none."""
    adds_bos: bool
    """The native side puts that token before every prompt."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Its tokens; read from the file when they are needed, since most texts need none."""
        return Vocabulary.of(read_tokenizer(self.path))


class NativeServer:
    """A loaded model with its slots; `load` makes one."""

    def __init__(self, server: Any, model: Model) -> None:
        self._server = server
        self.model = model

    @classmethod
    def load(cls, settings: TextSettings) -> NativeServer:
        """Load the model. Blocks, most of the time with the GIL held, so no timer can bound it
        but one in another process. Raises `CannotLoad`.
        """
        xllamacpp = _import_xllamacpp()
        path = find_model(settings)
        tokenizer = _tokenizer(path)
        template = _template(path, tokenizer)
        # It always listens for HTTP. On a socket file in a folder of ours, gone before anybody
        # could connect, nobody ever reaches it; the key is for the moment in between.
        with tempfile.TemporaryDirectory(prefix="anyserve-", dir=_socket_folder()) as folder:
            parameters = computing(xllamacpp.CommonParams(), settings, path)
            parameters.hostnames = [f"{folder}/http.sock"]
            parameters.api_keys = [secrets.token_hex(16)]
            parameters.n_threads_http = 1
            try:
                server = xllamacpp.Server(parameters)
            except (RuntimeError, ValueError):
                raise CannotLoad(
                    f"model {str(path)!r}: llama.cpp can't load it: it is damaged, of a kind"
                    " that this version doesn't know, or there is too little memory"
                ) from None
        model = Model(
            path,
            context=_slot_context(server, settings.context),
            template=template,
            bos=tokenizer.bos,
            adds_bos=bool(tokenizer.bos) and _count(server, tokenizer.bos) > 1,
        )
        return cls(server, model)

    def run(self, body: bytes, on_chunk: OnChunk) -> None:
        """Run one request, calling `on_chunk` in this thread. Raises what the native side does."""
        self._server.handle_completions(body, on_chunk)

    def close(self) -> None:
        """Unload the model; no request may be running."""
        self._server = None


def _slot_context(server: Any, asked: int) -> int:
    """What a slot really holds, read from the refusal of a prompt that is too long for it.

    Also what makes the server safe to destroy: before its loop has answered something, that
    hangs for ever.
    """
    refusals: list[bytes] = []
    prompt = [0] * (asked + 2 * _ROUNDED_TO)
    server.handle_completions(
        json.dumps({"prompt": prompt, "max_tokens": 1}).encode(), refusals.append
    )
    return int(json.loads(refusals[0])["error"]["n_ctx"])


def _count(server: Any, prompt: str) -> int:
    """The tokens that a prompt becomes."""
    answers: list[bytes] = []
    server.handle_completions(
        json.dumps({"prompt": prompt, "max_tokens": 1}).encode(), answers.append
    )
    return int(json.loads(answers[-1])["usage"]["prompt_tokens"])


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return read_tokenizer(path)
    except ValueError as error:
        raise CannotLoad(f"model {str(path)!r}: {error}") from None


def _template(path: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    if tokenizer.template is None:
        return None
    try:
        return read_template(tokenizer.template, bos=tokenizer.bos, eos=tokenizer.eos)
    except TemplateError as error:
        log.warning("model %r takes no chats: its template can't be read: %s", str(path), error)
        return None


def _import_xllamacpp() -> Any:
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError:
        raise CannotLoad(
            "the package xllamacpp is missing: pip install 'anyserve[local]'"
        ) from None
    except ImportError as error:
        if "libgomp" in str(error):
            raise CannotLoad(
                "the system library libgomp.so.1 is missing:"
                " apt-get install libgomp1, dnf install libgomp or apk add libgomp"
            ) from None
        raise CannotLoad(f"xllamacpp can't be imported: {error}") from None


def _socket_folder() -> str | None:
    """Where a socket file's path is short enough (104 bytes on some systems)."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= 70 else "/tmp"


def computing(parameters: Any, settings: TextSettings, model: Path) -> Any:
    """The `CommonParams` with all that says what is computed and how; who may ask is left open."""
    parameters.model.path = str(model)
    parameters.model_alias = {"text"}  # named in every chunk; the default is the whole path
    parameters.n_parallel = settings.slots
    parameters.n_ctx = settings.slots * settings.context
    parameters.n_batch = parameters.n_ubatch = max(BATCH, settings.slots)
    parameters.cpuparams.n_threads = settings.threads
    parameters.cpuparams_batch.n_threads = settings.threads
    parameters.cache_ram_mib = 0
    parameters.verbosity = -1
    parameters.cors_origins = ""
    parameters.ui = False
    parameters.endpoint_slots = False
    return parameters
