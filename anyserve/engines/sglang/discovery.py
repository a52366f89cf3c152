"""What a running server serves: asked once it is ready, and again when it has been away."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from anyserve.engines.errors import CannotLoad
from anyserve.engines.interface import About
from anyserve.engines.sglang.client import Client, parse_url
from anyserve.engines.sglang.protocol import (
    SAMPLING,
    ModelInfo,
    Models,
    ServerInfo,
    Tokens,
)
from anyserve.engines.sglang.tokenizer import Tokenizer, read_tokenizer
from anyserve.errors import Unavailable

ASK_TIME = 30.0
"""Seconds for an answer; a server that has just started may be computing its first batch."""
_DEFAULT_SLOTS = 64
_DEFAULT_CONTEXT = 2048


@attrs.frozen
class Served:
    """A server's model and what it can do."""

    name: str
    model: str
    """As requests name it: the served name, without the folders of a path."""
    folder: Path
    """Of the tokenizer, on the server's machine; a name on a hub, otherwise."""
    generates: bool
    context: int
    slots: int
    sampling: frozenset[str]
    incremental: bool
    low_priority_first: bool

    def about(self, tokenizer: Tokenizer | None) -> About:
        """What an engine on this server says of itself.

        Without a tokenizer it knows neither the chat template nor where characters end.
        """
        template = tokenizer.template if tokenizer is not None else None
        return About(
            model=self.model,
            max_context=self.context,
            slots=self.slots,
            sampling=self.sampling,
            chat=template is not None,
            tools=template is not None and template.tools,
            resumable=self.generates and tokenizer is not None,
        )


async def discover(client: Client) -> Served:
    """Ask a server that is ready; waits `ASK_TIME` for each of three answers. Raises `Unavailable`
    for one that is no SGLang."""
    info = await client.get("/model_info", ModelInfo, within=ASK_TIME)
    server = await client.get("/server_info", ServerInfo, within=ASK_TIME)
    models = await client.get("/v1/models", Models, within=ASK_TIME)
    lengths = [model.max_model_len for model in models.data if model.max_model_len]
    pool = [server.max_total_num_tokens] if server.max_total_num_tokens else []
    offered = {
        "seed": server.enable_deterministic_inference,
        "priority": server.enable_priority_scheduling,
        "lora": bool(server.enable_lora),
    }
    name = info.served_model_name or info.model_path
    return Served(
        name=name,
        model=Path(name).name if name.startswith("/") else name,
        folder=Path(info.tokenizer_path or info.model_path),
        generates=info.is_generation,
        context=min([*lengths, *pool], default=_DEFAULT_CONTEXT),
        slots=server.max_running_requests or _DEFAULT_SLOTS,
        sampling=SAMPLING | {option for option, there in offered.items() if there},
        incremental=server.incremental_streaming_output,
        low_priority_first=server.schedule_low_priority_values_first,
    )


async def find_tokenizer(served: Served, folder: Path | None) -> Tokenizer | None:
    """The tokenizer in `folder`, or where the server says. Raises `CannotLoad` for none in one
    that was named."""
    found = await trio.to_thread.run_sync(read_tokenizer, folder or served.folder)
    if found is None and folder is not None:
        raise CannotLoad(f"tokenizer: there is no tokenizer.json in {folder}")
    return found


async def adds_bos(client: Client, served: Served) -> bool:
    """Whether the server puts a token before raw prompts itself."""
    counts = []
    for special in (True, False):
        body = {"model": served.name, "prompt": "x", "add_special_tokens": special}
        tokens = await client.post("/v1/tokenize", body, Tokens, within=ASK_TIME)
        counts.append(len(tokens.tokens))
    return counts[0] > counts[1]


def generates(url: str, api_key: str | None, wait: float) -> bool:
    """Whether the server at `url` gives text, rather than vectors.

    Blocks, as what makes an app may, for up to `wait` seconds until it answers. Raises
    `CannotLoad`.
    """
    parse_url(url)
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    base = url if "//" in url else f"http://{url}"
    request = urllib.request.Request(f"{base.rstrip('/')}/model_info", headers=headers)
    until = time.monotonic() + wait
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                data: Any = answer.read()
            return msgspec.json.decode(data, type=ModelInfo).is_generation
        except (OSError, urllib.error.URLError) as error:
            if time.monotonic() > until:
                raise CannotLoad(f"no SGLang answers at {url}: {error}") from None
        except msgspec.DecodeError as error:
            raise CannotLoad(f"what answers at {url} is no SGLang: {error}") from None
        time.sleep(0.5)


async def until_ready(client: Client, within: float) -> None:
    """Wait until the server says that it is ready, `within` seconds at most, asking each half
    second. Raises `Unavailable`."""
    until = trio.current_time() + within
    while True:
        try:
            await client.ping("/ready", within=ASK_TIME)
            return
        except Unavailable:
            if trio.current_time() > until:
                raise
        await trio.sleep(0.5)
