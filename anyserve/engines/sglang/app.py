"""Apps that serve what SGLang serves: `attached` to servers that run, or with one `owned`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from anyserve.app import App
from anyserve.engines.interface import Engine
from anyserve.engines.options import count
from anyserve.engines.serving import embedding_app, text_app
from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.discovery import serves
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.owned import OwnedSettings, open_owned
from anyserve.engines.sglang.pool import EnginePool
from anyserve.pairs import DECODE, PREFILL

_MOST_SECONDS = 86_400


def attached(
    url: str,
    capability: str | None = None,
    tokenizer: str | None = None,
    api_key_file: str | None = None,
    wait: str = "30",
    bootstrap_host: str | None = None,
) -> App:
    """An app that serves the model of a running SGLang server.

    url: `http://host:port`; several, with commas, are servers of one model, which share the load.
    capability: what it is served as; `decode`, `embedding` where the model embeds, `prefill` where
        the server is that half of a pair.
    tokenizer: a folder with the model's tokenizer files, where the server's own isn't one here.
    api_key_file: its first line is the key that the server asks for.
    wait: seconds for the server to come up.
    bootstrap_host: of a prefill half, where decode halves find it; the url's, otherwise.

    Blocks until the server says what kind of model it has. Raises `ValueError` for an option that
    can't be read, `CannotLoad` when no server answers.
    """
    urls = [one.strip() for one in url.split(",")]
    key = _first_line(api_key_file)
    seconds = count("wait", wait, 0, _MOST_SECONDS)
    folder = Path(tokenizer) if tokenizer else None
    openers = [
        partial(
            SglangEngine.attached,
            Client(parse_url(one), key),
            folder,
            within=seconds,
            bootstrap_host=bootstrap_host,
        )
        for one in urls
    ]
    opened = partial(EnginePool.open, openers)
    return engine_app(opened, serves(urls[0], key, seconds), capability)


def owned(
    model: str,
    python: str = sys.executable,
    args: str = "",
    capability: str | None = None,
    tokenizer: str | None = None,
    load_time: str = "600",
    bootstrap_host: str | None = None,
) -> App:
    """An app that serves a model by an SGLang server of its own, which starts and ends with it.

    model: a folder with a Hugging Face model, or a name on its hub.
    python: the interpreter of an environment with SGLang.
    args: more options of SGLang's server, as in a shell.
    load_time: seconds until it has to be ready.
    bootstrap_host: of a prefill half, where decode halves on other machines find it; `args` then
        have it listen there, as with `--host 0.0.0.0`.
    capability, tokenizer: as for `attached`.

    Raises `ValueError` for an option that can't be read.
    """
    more = shlex.split(args)
    settings = OwnedSettings(model, python, more, count("load_time", load_time, 1, _MOST_SECONDS))
    folder = Path(tokenizer) if tokenizer else None
    opened = partial(open_owned, settings, folder, bootstrap_host=bootstrap_host)
    return engine_app(opened, _started_for(more), capability)


def engine_app(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]], serves: str, name: str | None
) -> App:
    """The app of an engine that gives text, or vectors; name: in place of what it `serves`."""
    declared = embedding_app if serves == "embedding" else text_app
    return declared(open_engine, name or serves)


def _started_for(args: Sequence[str]) -> str:
    """What a server with these options serves."""
    if "--is-embedding" in args:
        return "embedding"
    mode = f"--disaggregation-mode {PREFILL}"
    return PREFILL if mode in " ".join(args).replace("=", " ") else DECODE


def _first_line(path: str | None) -> str | None:
    """The key in a file; raises `ValueError` where there is none."""
    if path is None:
        return None
    try:
        key = Path(path).read_text().partition("\n")[0].strip()
    except OSError as error:
        raise ValueError(f"api_key_file: {path!r}: {error.strerror}") from None
    if not key:
        raise ValueError(f"api_key_file: {path!r} has no key in its first line")
    return key
