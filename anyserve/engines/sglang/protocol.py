"""What SGLang's server says and is asked, as far as it is used here; tried with 0.5.23."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from anyserve.engines.sampling import BASIC, Sampling
from anyserve.pairs import Rendezvous

SAMPLING = BASIC | {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "json_schema",
    "regex",
    "logprobs",
    "top_logprobs",
}
"""What every server obeys; `seed`, `priority` and `lora` need options of the server."""
_SEEDS = 2**63

Logprob = tuple[float | None, int, str | None]
"""The logarithm, the token's id, its text."""


class Finish(msgspec.Struct, gc=False):
    """Why a text has ended."""

    type: str
    matched: Any = None
    """The id of the model's own end, or the stop string."""
    message: str = ""
    status_code: int | None = None


class Meta(msgspec.Struct):
    """What comes with a piece of text."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: Finish | None = None
    cached_tokens: int | None = None
    output_token_logprobs: list[Logprob] = []
    output_top_logprobs: list[list[Logprob] | None] = []


class Failure(msgspec.Struct):
    """An error instead of a piece of text."""

    message: str = ""
    code: int = 500


class Chunk(msgspec.Struct):
    """An event of a stream; `text` is all of it so far, or what is new where the server streams
    incrementally."""

    text: str = ""
    meta_info: Meta | None = None
    error: Failure | None = None


class ChunkWithIds(Chunk):
    """One whose ids are wanted too: all so far, or the new ones."""

    output_ids: list[int] = []


class ModelInfo(msgspec.Struct):
    """`/model_info`."""

    model_path: str
    served_model_name: str | None = None
    tokenizer_path: str | None = None
    is_generation: bool = True


class ServerInfo(msgspec.Struct):
    """`/server_info`: the server's options, and what has become of them."""

    max_running_requests: int | None = None
    max_total_num_tokens: int | None = None
    incremental_streaming_output: bool = False
    enable_priority_scheduling: bool = False
    schedule_low_priority_values_first: bool = False
    enable_lora: bool | None = None
    enable_deterministic_inference: bool = False
    disaggregation_mode: str = "null"
    disaggregation_bootstrap_port: int | None = None


class Model(msgspec.Struct):
    """One of `/v1/models`."""

    id: str
    max_model_len: int | None = None


class Models(msgspec.Struct):
    """`/v1/models`."""

    data: list[Model]


class RankLoad(msgspec.Struct):
    """How busy a rank is."""

    num_running_reqs: int = 0
    num_waiting_reqs: int = 0

    @property
    def requests(self) -> int:
        """All that it has."""
        return self.num_running_reqs + self.num_waiting_reqs


class Loads(msgspec.Struct):
    """`/v1/loads`."""

    loads: list[RankLoad]


class Tokens(msgspec.Struct):
    """`/v1/tokenize`."""

    tokens: list[int]


class Vector(msgspec.Struct):
    """One of `/v1/embeddings`."""

    embedding: list[float]
    index: int = 0


class Embeddings(msgspec.Struct):
    """`/v1/embeddings`."""

    data: list[Vector]


def encode(
    prompt: str | Sequence[int],
    sampling: Sampling,
    rid: str,
    *,
    max_tokens: int | None,
    low_priority_first: bool = False,
    rendezvous: Rendezvous | None = None,
) -> bytes:
    """The body of a streamed `/generate`.

    max_tokens: None for as many as the context holds. rendezvous: with the other half of a pair.
    """
    how: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.stop:
        # SGLang ends the text, but would give what a stop string begins with before it is whole.
        how |= {"stop": sampling.stop, "no_stop_trim": True}
    if sampling.seed is not None:
        how["sampling_seed"] = sampling.seed % _SEEDS
    if sampling.json_schema is not None:
        how["json_schema"] = sampling.json_schema
    if sampling.regex is not None:
        how["regex"] = sampling.regex
    body: dict[str, Any] = {"sampling_params": how, "stream": True, "rid": rid}
    body["text" if isinstance(prompt, str) else "input_ids"] = prompt
    if sampling.logprobs:
        body |= {
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": sampling.top_logprobs,
            "return_text_in_logprobs": True,
        }
    if sampling.priority:
        body["priority"] = -sampling.priority if low_priority_first else sampling.priority
    if sampling.lora is not None:
        body["lora_path"] = sampling.lora
    if rendezvous is not None:
        body |= rendezvous.parameters  # the same names
    return msgspec.json.encode(body)
