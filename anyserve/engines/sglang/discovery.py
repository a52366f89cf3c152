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

from anyserve.capability import Attribute
from anyserve.engines.errors import CannotLoad
from anyserve.engines.interface import About
from anyserve.engines.sglang.client import Client, Value, parse_url
from anyserve.engines.sglang.protocol import (
    SAMPLING,
    ModelInfo,
    Models,
    ServerInfo,
    Tokens,
)
from anyserve.engines.sglang.tokenizer import Tokenizer, read_tokenizer
from anyserve.errors import Unavailable
from anyserve.pairs import DECODE, DISAGGREGATION, HOST, PORT, PREFILL

ASK_TIME = 30.0
"""Seconds for an answer; a server that has just started may be computing its first batch."""
_DEFAULT_SLOTS = 64
HALVES = (PREFILL, DECODE)
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
    half: str | None = None
    """Of a pair: `prefill` or `decode`."""
    bootstrap_port: int | None = None
    """Of a prefill half: where decode halves ask for it."""

    def about(self, tokenizer: Tokenizer | None, host: str = "") -> About:
        """What an engine on this server says of itself.

        Without a tokenizer it knows neither the chat template nor where characters end.
        host: that of a prefill half, as decode halves reach it.
        """
        attributes: dict[str, Attribute] = {}
        if self.half is not None:
            attributes[DISAGGREGATION] = self.half
        if self.half == PREFILL and self.bootstrap_port is not None:
            attributes |= {HOST: host, PORT: self.bootstrap_port}
        template = tokenizer.template if tokenizer is not None else None
        return About(
            model=self.model,
            max_context=self.context,
            slots=self.slots,
            sampling=self.sampling,
            chat=template is not None,
            tools=template is not None and template.tools,
            # What a prefill half answers is read by nobody, so that its ids need no care.
            resumable=self.generates and (tokenizer is not None or self.half == PREFILL),
            attributes=attributes,
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
        half=server.disaggregation_mode if server.disaggregation_mode in HALVES else None,
        bootstrap_port=server.disaggregation_bootstrap_port,
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


def serves(url: str, api_key: str | None, wait: float) -> str:
    """What the server at `url` is for: `decode`, `prefill` or `embedding`.

    Blocks, as what makes an app may, for up to `wait` seconds until it answers. Raises
    `CannotLoad`.
    """
    parse_url(url)
    base = (url if "//" in url else f"http://{url}").rstrip("/")
    until = time.monotonic() + wait
    if not _asked(f"{base}/model_info", api_key, ModelInfo, until).is_generation:
        return "embedding"
    server = _asked(f"{base}/server_info", api_key, ServerInfo, until)
    return PREFILL if server.disaggregation_mode == PREFILL else DECODE


def _asked(url: str, api_key: str | None, kind: type[Value], until: float) -> Value:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(url, headers=headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                data: Any = answer.read()
            return msgspec.json.decode(data, type=kind)
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
