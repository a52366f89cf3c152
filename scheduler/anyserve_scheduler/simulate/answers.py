"""What a simulated handler says: numbers, as tokens where its capability is resumable."""

from __future__ import annotations

import json
from functools import lru_cache

from anyserve_protos.infer_wire import response_pieces, scan_request, stream_response
from anyserve_protos.response_head import OutputHead, encode_response_head

_OUTPUTS = (OutputHead("finish_reason", "BYTES", (1,)), OutputHead("token_ids", "INT32", (1,)))
_HEAD = encode_response_head("", "", "", {}, _OUTPUTS)
_ID_BYTES = 4


def message(number: int) -> bytes:
    """A message of a stream that can't be resumed, or the one answer to a request."""
    return b"%d" % number


@lru_cache(1024)
def token(number: int, last: bool) -> bytes:
    """A message of a stream that can be resumed: a ModelStreamInferResponse."""
    reason = b"stop" if last else b""
    raw = [len(reason).to_bytes(4, "little") + reason, number.to_bytes(_ID_BYTES, "little")]
    return b"".join(stream_response(*response_pieces(_HEAD, raw)))


def number_of(said: bytes) -> int:
    """Which message of its request this is, of either kind."""
    return int(said) if said.isdigit() else int.from_bytes(said[-_ID_BYTES:], "little")


def said_before(head: bytes) -> int:
    """How many messages the client of a resumed request has already, in their order."""
    ids = json.loads(str(scan_request(head).parameters.get("resume_token_ids", "[]")))
    assert ids == list(range(len(ids)))
    return len(ids)
