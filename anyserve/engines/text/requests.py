"""A request as llama.cpp's server takes it: what is asked for, as the JSON of a raw completion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from anyserve.engines.prompts import Chat, Message, Prompt
from anyserve.engines.sampling import BASIC, Sampling
from anyserve.engines.text.constraints import check_json_schema, constraint
from anyserve.engines.text.native import Model
from anyserve.errors import InvalidArgument, Unimplemented

SAMPLING = BASIC | {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "json_schema",
    "logprobs",
    "top_logprobs",
}
"""What can be asked for. No `regex`: the native side lets through what it can't keep a text to,
and nothing that checks a text by a client's expression takes a bounded time."""
_SEEDS = 2**32 - 1
"""The native side has that many; one number more means a random one."""
_MOST_CHARACTERS = 64
"""Characters a token: well over what tokenizers make of any text that is worth reading."""


def prompt_text(prompt: Prompt, model: Model, system_prompt: str) -> str:
    """The raw prompt, which for a chat is what the model's template makes of it.

    system_prompt: stands before chats that have no system message. Raises `InvalidArgument` for a
    prompt that is empty or far longer than the context (to count its tokens takes time with its
    length in bytes), or a chat that the template refuses.
    """
    most = model.context * _MOST_CHARACTERS
    if isinstance(prompt, Chat):
        return _chat_text(prompt, model, system_prompt, most)
    if not prompt:
        raise InvalidArgument("the prompt is empty")
    if len(prompt) > most:
        raise InvalidArgument(
            f"the prompt has {len(prompt)} characters, but the context holds {model.context} tokens"
        )
    return prompt


def _chat_text(chat: Chat, model: Model, system_prompt: str, most: int) -> str:
    template = model.template
    if template is None:
        raise Unimplemented("messages: the model has no chat template")
    if not chat.messages:
        raise InvalidArgument("the prompt is empty")
    if system_prompt and template.system and chat.messages[0].role != "system":
        chat = Chat((Message("system", system_prompt), *chat.messages), chat.tools)
    text = template.render(chat, most)
    return text.removeprefix(model.bos) if model.adds_bos else text


def encode(prompt: str, sampling: Sampling, resume: Sequence[int]) -> bytes:
    """The request's body. Raises `InvalidArgument` for what can't be asked for."""
    body: dict[str, Any] = {
        "prompt": [prompt, *resume] if resume else prompt,
        "stream": True,
        "return_progress": True,  # chunks during prefill too, so that it can be cancelled
        "timings_per_token": True,  # token counts in every chunk
        "max_tokens": max(1, sampling.max_tokens - len(resume)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _SEEDS
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if sampling.return_token_ids:
        body["verbose"] = True  # ids in every chunk, at the price of parsing twice as much
    if sampling.logprobs:
        body["n_probs"] = max(1, sampling.top_logprobs)
    if sampling.json_schema is not None:
        check_json_schema(sampling.json_schema)
        body["grammar"] = constraint(sampling.json_schema)
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidArgument(f"the request can't be written as JSON: {error}") from None
