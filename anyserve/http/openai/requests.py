"""Requests of OpenAI's API as ModelInferRequests, taken apart as those that come in bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import attrs
import msgspec
from anyserve_protos.infer_wire import InferRequestHead
from anyserve_protos.response_head import OutputHead, encode_response_head

from anyserve.capability import NEED_PREFIX, Attribute
from anyserve.http.openai.errors import Refused
from anyserve.http.openai.models import Target
from anyserve.http.openai.schemas import ChatRequest, CompletionRequest, ResponseFormat, TextRequest

SESSION = "session"
"""The request parameter by which routing keeps requests together."""
RESUME = "resume"
"""The one by which a request says that it must not go on at another replica."""
_DEFAULT_TEMPERATURE = 1.0
"""OpenAI's; the engines' own is 0."""
_DEFAULT_TOKENS = 16
"""Of a completion, in OpenAI's API."""
_SAME_NAME = (
    "top_p",
    "n",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "regex",
    "priority",
    "lora",
)
_MOST_TOKENS = 2**31 - 1


def of_chat(target: Target, request: ChatRequest, identity: str) -> InferRequestHead:
    """The request of a chat.

    The messages come first, since routing looks for what prompts have in common in the first input.
    """
    sampling = _sampling(request)
    most = request.max_completion_tokens or request.max_tokens
    sampling["max_tokens"] = _MOST_TOKENS if most is None else most
    if request.logprobs:
        sampling |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    inputs = {"messages": _text(bytes(request.messages))}
    if request.uses_tools:
        inputs["tools"] = _text(msgspec.json.encode(request.tools))
    return _body(target, inputs, sampling, request, identity)


def of_completion(
    target: Target, request: CompletionRequest, prompt: str, identity: str
) -> InferRequestHead:
    """The request of one prompt of a completion."""
    sampling = _sampling(request)
    sampling["max_tokens"] = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    if request.logprobs is not None:
        sampling |= {"logprobs": True, "top_logprobs": request.logprobs}
    return _body(target, {"text_input": _text(prompt.encode())}, sampling, request, identity)


def of_embedding(target: Target, texts: list[str], identity: str) -> InferRequestHead:
    """The request of texts to be embedded."""
    kind = _kind(target.capability, target.attributes, ("text_input",), len(texts))
    return _request(kind, {}, identity, [b"".join([_text(text.encode()) for text in texts])])


def _sampling(request: TextRequest) -> dict[str, object]:
    values: dict[str, object] = {
        "temperature": (
            _DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
        )
    }
    for name in _SAME_NAME:
        value = getattr(request, name)
        if value is not None and value != []:
            values[name] = value
    schema = _schema(request.response_format)
    if schema is not None:
        values["json_schema"] = schema
    return values


def _schema(wanted: ResponseFormat | None) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type":"object"}'
    if wanted.json_schema is None:
        raise Refused("response_format.json_schema: the schema is missing", param="response_format")
    try:
        return bytes(wanted.json_schema.schema).decode()
    except UnicodeDecodeError:
        raise Refused("response_format: the schema is not UTF-8", param="response_format") from None


def _body(
    target: Target,
    inputs: Mapping[str, bytes],
    sampling: Mapping[str, object],
    request: TextRequest,
    identity: str,
) -> InferRequestHead:
    raw = [
        *inputs.values(),
        _text(msgspec.json.encode(sampling)),
        b"\1" if request.stream else b"\0",
    ]
    names = (*inputs, "sampling_parameters", "stream")
    parameters: dict[str, Attribute] = {}
    if request.prompt_cache_key:
        parameters[SESSION] = request.prompt_cache_key
    if request.resume is False:
        parameters[RESUME] = False
    counted = not request.stream or request.include_usage
    kind = _kind(target.capability, target.attributes, names, 1, counted)
    return _request(kind, parameters, identity, raw)


@attrs.frozen
class _Kind:
    """What requests of one kind have in common."""

    capability: str
    parameters: Mapping[str, Attribute]
    head: bytes
    """A ModelInferRequest that more can be put behind."""


@lru_cache(256)
def _kind(
    capability: str,
    attributes: tuple[tuple[str, Attribute], ...],
    inputs: tuple[str, ...],
    size: int,
    counted: bool = False,
) -> _Kind:
    """counted: whether cached tokens are to be told, which not every response need have."""
    tensors = [
        OutputHead(name, "BOOL" if name == "stream" else "BYTES", (size,)) for name in inputs
    ]
    parameters = {NEED_PREFIX + name: value for name, value in attributes}
    if counted:
        parameters["return_num_cached_tokens"] = True
    # Up to the raw contents, a request has the same fields as a response.
    head = encode_response_head(capability, "", "", parameters, tensors)
    return _Kind(capability, parameters, head)


def _request(
    kind: _Kind, parameters: Mapping[str, Attribute], identity: str, raw: list[bytes]
) -> InferRequestHead:
    """A request of that kind, as if it had come in bytes."""
    return InferRequestHead(
        kind.capability,
        "",
        identity,
        {**kind.parameters, **parameters},
        kind.head + encode_response_head("", "", identity, parameters, ()),
        [memoryview(content) for content in raw],
    )


def _text(data: bytes) -> bytes:
    """One element of a BYTES tensor."""
    return len(data).to_bytes(4, "little") + data
