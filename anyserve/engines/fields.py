"""The inputs and outputs of a capability that gives text, and what a request asks for in them.

Names and types are those of vLLM's Triton backend and of TensorRT-LLM's where it has them too.
Each input may also come as a request parameter of the same name, which the input overrides.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from anyserve.engines.interface import Delta, TokenLogprob
from anyserve.engines.prompts import Prompt, parse_chat
from anyserve.engines.sampling import NAMES, REFUSED, Sampling
from anyserve.errors import InvalidArgument
from anyserve.messages import OutputValue, Request, Response
from anyserve.pairs import Rendezvous

INPUTS = {
    "text_input": "BYTES[1]?",
    "messages": "BYTES[1]?",
    "tools": "BYTES[1]?",
    "resume_token_ids": "INT32[-1]?",
    "stream": "BOOL[1]?",
    "exclude_input_in_output": "BOOL[1]?",
    "return_finish_reason": "BOOL[1]?",
    "return_num_input_tokens": "BOOL[1]?",
    "return_num_output_tokens": "BOOL[1]?",
    "return_num_cached_tokens": "BOOL[1]?",
    "return_token_ids": "BOOL[1]?",
    "sampling_parameters": "BYTES[1]?",
    "max_tokens": "INT32[1]?",
    "temperature": "FP32[1]?",
    "top_p": "FP32[1]?",
    "top_k": "INT32[1]?",
    "min_p": "FP32[1]?",
    "stop": "BYTES[-1]?",
    "stop_words": "BYTES[-1]?",
    "seed": "UINT64[1]?",
    "random_seed": "UINT64[1]?",
    "presence_penalty": "FP32[1]?",
    "frequency_penalty": "FP32[1]?",
    "repetition_penalty": "FP32[1]?",
    "json_schema": "BYTES[1]?",
    "regex": "BYTES[1]?",
    "ignore_eos": "BOOL[1]?",
    "n": "INT32[1]?",
    "logprobs": "BOOL[1]?",
    "top_logprobs": "INT32[1]?",
    "priority": "INT32[1]?",
    "lora": "BYTES[1]?",
}
OUTPUTS = {
    "text_output": "BYTES[1]",
    "finish_reason": "BYTES[1]",
    "num_input_tokens": "UINT32[1]",
    "num_output_tokens": "UINT32[1]",
}
ALWAYS = frozenset(OUTPUTS)
OUTPUTS |= {
    "num_cached_tokens": "UINT32[1]",
    "token_ids": "INT32[-1]",
    "index": "INT32[1]",
    "logprobs": "BYTES[1]",
}
_MAX_JSON = 1 << 20
"""Characters of `sampling_parameters`; far more than any that is accepted."""
_KEPT_TEXT = 1024
"""Characters of the longest `sampling_parameters` that are remembered."""
_MAX_ID = 2**31 - 1


@attrs.frozen
class TextRequest:
    """What one request asks for."""

    prompt: Prompt
    sampling: Sampling
    resume: tuple[int, ...]
    """Ids of tokens that somebody has already; the responses bring what comes after them."""
    stream: bool
    """Pieces as they come, rather than one response with the whole text."""
    echo: bool
    """The prompt stands before the text (`exclude_input_in_output` is false)."""
    outputs: frozenset[str]
    """The outputs that responses have."""
    rendezvous: Rendezvous | None = None
    """Where it is served by a pair of engines, of which this is one."""

    def response(self, delta: Delta, tokens: int, *, is_first: bool) -> Response:
        """The response that brings `delta`.

        tokens: how many came with it. is_first: whether none was brought before it.

        Every response has all outputs, since a client that asked for one would otherwise get an
        error; before the last one the reason is empty.
        """
        values: dict[str, OutputValue] = {
            "text_output": delta.text,
            "finish_reason": delta.finish_reason or "",
            "num_input_tokens": _count(delta.usage.prompt_tokens),
            "num_output_tokens": _count(delta.usage.output_tokens),
        }
        if not self.outputs <= ALWAYS:
            values |= {
                "num_cached_tokens": _count(delta.usage.cached_tokens or 0),
                "token_ids": np.array(delta.token_ids, np.int32),
                "index": np.array([delta.index], np.int32),
                "logprobs": json.dumps([_logprob(token) for token in delta.logprobs]),
            }
        outputs = {name: values[name] for name in OUTPUTS if name in self.outputs}
        prompt_tokens = delta.usage.prompt_tokens if is_first else 0
        return Response(outputs, tokens=tokens, prompt_tokens=prompt_tokens)


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    """As OpenAI's chat API has it, and the token's id."""
    return {
        "token": token.token.decode(errors="replace"),
        "bytes": list(token.token),
        "logprob": token.logprob,
        "id": token.token_id,
        "top_logprobs": [
            {key: value for key, value in _logprob(other).items() if key != "top_logprobs"}
            for other in token.top
        ],
    }


def read_request(request: Request) -> TextRequest:
    """What `request` asks for. Raises `InvalidArgument` naming the input or the parameter."""
    text, messages = _text(request, "text_input"), _text(request, "messages")
    if (text is None) == (messages is None):
        raise InvalidArgument("one of text_input (a raw prompt) and messages (a chat) is expected")
    stream = _flag(request, "stream", default=False)
    echo = not _flag(request, "exclude_input_in_output", default=True)
    if echo and (stream or text is None):
        raise InvalidArgument(
            "exclude_input_in_output: false goes neither with stream nor with messages"
        )
    tools = _text(request, "tools")
    if tools is not None and messages is None:
        raise InvalidArgument("tools: only together with messages")
    sampling = _sampling(request)
    return TextRequest(
        prompt=text if text is not None else parse_chat(messages or "", tools),
        sampling=sampling,
        resume=_resume(request, sampling),
        stream=stream,
        echo=echo,
        outputs=_outputs(request, sampling),
        rendezvous=Rendezvous.read(request.parameters),
    )


def _resume(request: Request, sampling: Sampling) -> tuple[int, ...]:
    """The input's ids, or the parameter's, which is the same list in JSON."""
    ids = _given(request, "resume_token_ids")
    if ids is None:
        return ()
    if isinstance(ids, str):
        try:
            ids = json.loads(ids)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"resume_token_ids: not JSON: {error}") from None
    if not isinstance(ids, list) or not all(_is_id(value) for value in ids):
        raise InvalidArgument("resume_token_ids: a list of token ids is expected")
    if ids and sampling.n > 1:
        raise InvalidArgument("resume_token_ids: one text can be resumed, not n")
    if ids and (sampling.json_schema is not None or sampling.regex is not None):
        # What a text is held to counts from the first token that the engine chooses.
        raise InvalidArgument("resume_token_ids: not together with json_schema or regex")
    return tuple(ids)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ID


def _outputs(request: Request, sampling: Sampling) -> frozenset[str]:
    asked = {
        "num_cached_tokens": _flag(request, "return_num_cached_tokens", default=False),
        "token_ids": sampling.return_token_ids,
        "index": sampling.n > 1,
        "logprobs": sampling.logprobs,
    }
    always = {name for name in ALWAYS if _wanted(request, name)}
    return frozenset(always | {name for name, wanted in asked.items() if wanted})


@lru_cache(4096)
def _count(tokens: int) -> npt.NDArray[np.uint32]:
    """An array, as it goes on the wire: the worker writes one into a response far faster than it
    makes one of a number. All texts count from one, and say so with the same arrays."""
    array = np.array([tokens], np.uint32)
    array.flags.writeable = False
    return array


def _wanted(request: Request, output: str) -> bool:
    return output == "text_output" or _flag(request, f"return_{output}", default=True)


def _sampling(request: Request) -> Sampling:
    """Single inputs win over `sampling_parameters`, which win over request parameters."""
    given = request.parameters
    values = {name: given[name] for name in (*NAMES, *REFUSED) if name in given}
    inputs = {name: _input(request, name) for name in NAMES if name in request}
    text = _text(request, "sampling_parameters")
    if text is not None and not values and not inputs and len(text) <= _KEPT_TEXT:
        return _sampling_of(text)
    if text is not None:
        values |= _json_object("sampling_parameters", text)
    return Sampling.of(values | inputs)


@lru_cache(256)
def _sampling_of(text: str) -> Sampling:
    """What these `sampling_parameters` alone ask for: OpenAI's door says all in them, and many
    requests the same."""
    return Sampling.of(_json_object("sampling_parameters", text))


def _json_object(name: str, text: str) -> dict[str, Any]:
    if len(text) > _MAX_JSON:
        raise InvalidArgument(f"{name}: more than {_MAX_JSON} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name}: a JSON object is expected")
    return value


def _input(request: Request, name: str) -> Any:
    """The Python value of input `name`: a list where it may have any length, else one value."""
    array = request[name]
    values = [
        _decoded(name, item) if isinstance(item, bytes) else item
        for item in array.reshape(-1).tolist()
    ]
    return values if "[-1]" in INPUTS[name] else values[0]


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name}: not UTF-8: {error.reason} at byte {error.start}") from None


def _given(request: Request, name: str) -> Any:
    return _input(request, name) if name in request else request.parameters.get(name)


def _text(request: Request, name: str) -> str | None:
    value = _given(request, name)
    if value is not None and not isinstance(value, str):
        raise InvalidArgument(f"{name}: text is expected, not a {type(value).__name__}")
    return value


def _flag(request: Request, name: str, *, default: bool) -> bool:
    value = _given(request, name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name}: true or false is expected, not a {type(value).__name__}")
    return value


def read_texts(request: Request) -> list[str]:
    """The texts to embed. Raises `InvalidArgument` naming the one that is none."""
    return [
        _decoded(f"text_input[{index}]", data) for index, data in enumerate(request["text_input"])
    ]
