"""The requests of OpenAI's API, as far as they are understood here.

Fields that OpenAI has and that change nothing here (`user`, `store`, `service_tier`, ...) are
passed over like any other unknown one. What would change the answer, and can't be done, is refused:
`REFUSED` has it. Most ranges are for the engine to check. Source: OpenAI's API reference, Chat
Completions, Completions and Embeddings; the parameters after `seed` are vLLM's and SGLang's, and
`resume` is AnyServe's own.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from anyserve.http.openai.errors import Refused

REFUSED = {
    "logit_bias": "tokens can't be weighed",
    "functions": "it is out of date: use tools",
    "function_call": "it is out of date: use tool_choice",
    "audio": "there is text only",
    "web_search_options": "nothing is searched",
    "suffix": "text is continued, not filled in",
    "best_of": "all n texts are given",
}
"""Fields that are refused where they say anything, and why."""


class StreamOptions(msgspec.Struct):
    """How a stream is to be."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct):
    """A schema by name."""

    schema: msgspec.Raw


class ResponseFormat(msgspec.Struct):
    """What a text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TextRequest(msgspec.Struct):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: ResponseFormat | None = None
    prompt_cache_key: str | None = None
    """Requests of one key go to one replica where that can be."""
    resume: bool | None = None
    """False where a text must not go on at another replica."""
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    regex: str | None = None
    priority: int | None = None
    lora: str | None = None
    logit_bias: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None
    suffix: Any = None
    best_of: Any = None

    def check(self) -> None:
        """Raise `Refused` for what can't be done, whoever serves it."""
        for name, reason in REFUSED.items():
            if getattr(self, name):
                raise Refused(f"{name}: {reason}", param=name)
        if self.n is not None and not 1 <= self.n <= MAX_SAMPLES:
            raise Refused(f"n: {self.n} is not in the range 1 to {MAX_SAMPLES}", param="n")
        if self.stream_options is not None and not self.stream:
            raise Refused("stream_options: only together with stream", param="stream_options")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of its token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(TextRequest):
    """`POST /v1/chat/completions`. Messages and tools stay JSON: the engine reads them."""

    messages: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | dict[str, Any] | None = None
    modalities: list[str] | None = None

    def check(self) -> None:
        super().check()
        if not bytes(self.messages):
            raise Refused("messages: they are missing", param="messages")
        if self.modalities not in (None, [], ["text"]):
            raise Refused("modalities: there is text only", param="modalities")
        if self.tool_choice not in (None, "auto", "none"):
            raise Refused("tool_choice: a call can't be forced: auto or none", param="tool_choice")

    @property
    def uses_tools(self) -> bool:
        """Whether the model may call something."""
        return bool(self.tools) and self.tool_choice != "none"


class CompletionRequest(TextRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]] = ""
    echo: bool | None = None
    logprobs: int | None = None

    def check(self) -> None:
        super().check()
        if self.echo and self.logprobs is not None:
            raise Refused("logprobs: not together with echo", param="logprobs")

    @property
    def prompts(self) -> list[str]:
        """At least one text; raises `Refused` for token ids."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not prompts:
            raise Refused("prompt: it is empty", param="prompt")
        if len(prompts) > MAX_PROMPTS:
            raise Refused(f"prompt: {len(prompts)} texts, over {MAX_PROMPTS}", param="prompt")
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise Refused("prompt: text is expected, not token ids", param="prompt")
        return texts


class EmbeddingRequest(msgspec.Struct):
    """`POST /v1/embeddings`."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    @property
    def texts(self) -> list[str]:
        """At least one text; raises `Refused` for token ids."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        if not inputs:
            raise Refused("input: it is empty", param="input")
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            raise Refused("input: text is expected, not token ids", param="input")
        return texts


MAX_SAMPLES = 128
"""Texts for one prompt, as OpenAI has it; an engine may take fewer."""
MAX_PROMPTS = 64
"""Of one request; each is a request of its own to the capability."""

Request = TypeVar("Request", bound=msgspec.Struct)
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatRequest, CompletionRequest, EmbeddingRequest)
}


def decode(kind: type[Request], body: bytes) -> Request:
    """The request in JSON `body`; raises `Refused`, saying where it is wrong."""
    try:
        request: Request = _DECODERS[kind].decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        raise Refused(f"{param}: {message}" if param else message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}") from None
    return request
