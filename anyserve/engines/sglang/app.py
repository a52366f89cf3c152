"""Apps that serve what SGLang serves: `attached` to servers that run, or with one `owned`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

from anyserve.app import App
from anyserve.engines.interface import Engine
from anyserve.engines.options import count
from anyserve.engines.serving import embedding_app, text_app
from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.discovery import generates
from anyserve.engines.sglang.engine import SglangEngine
from anyserve.engines.sglang.owned import OwnedSettings, open_owned
from anyserve.engines.sglang.pool import EnginePool

_MOST_SECONDS = 86_400


def attached(
    url: str,
    capability: str | None = None,
    tokenizer: str | None = None,
    api_key_file: str | None = None,
    wait: str = "30",
) -> App:
    """An app that serves the model of a running SGLang server.

    url: `http://host:port`; several, with commas, are servers of one model, which share the load.
    capability: what it is served as; `decode`, or `embedding` where the model embeds.
    tokenizer: a folder with the model's tokenizer files, where the server's own isn't one here.
    api_key_file: its first line is the key that the server asks for.
    wait: seconds for the server to come up.

    Blocks until the server says what kind of model it has. Raises `ValueError` for an option that
    can't be read, `CannotLoad` when no server answers.
    """
    urls = [one.strip() for one in url.split(",")]
    key = _first_line(api_key_file)
    seconds = count("wait", wait, 0, _MOST_SECONDS)
    folder = Path(tokenizer) if tokenizer else None
    openers = [
        partial(SglangEngine.attached, Client(parse_url(one), key), folder, within=seconds)
        for one in urls
    ]
    opened = partial(EnginePool.open, openers)
    return engine_app(opened, capability, generates=generates(urls[0], key, seconds))


def owned(
    model: str,
    python: str = sys.executable,
    args: str = "",
    capability: str | None = None,
    tokenizer: str | None = None,
    load_time: str = "600",
) -> App:
    """An app that serves a model by an SGLang server of its own, which starts and ends with it.

    model: a folder with a Hugging Face model, or a name on its hub.
    python: the interpreter of an environment with SGLang.
    args: more options of SGLang's server, as in a shell.
    load_time: seconds until it has to be ready.
    capability, tokenizer: as for `attached`.

    Raises `ValueError` for an option that can't be read.
    """
    more = shlex.split(args)
    settings = OwnedSettings(model, python, more, count("load_time", load_time, 1, _MOST_SECONDS))
    opened = partial(open_owned, settings, Path(tokenizer) if tokenizer else None)
    return engine_app(opened, capability, generates="--is-embedding" not in more)


def engine_app(
    open_engine: Callable[[], AbstractAsyncContextManager[Engine]],
    capability: str | None,
    *,
    generates: bool,
) -> App:
    """The app of an engine that gives text, or vectors."""
    if generates:
        return text_app(open_engine, capability or "decode")
    return embedding_app(open_engine, capability or "embedding")


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
