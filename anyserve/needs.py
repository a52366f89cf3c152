"""A need as bytes, for the metadata of a request that goes from process to process."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from anyserve.capability import Capability
from anyserve.errors import InvalidArgument

NEED_LIMIT = 20 << 10
"""Bytes of a need. The largest one is a little smaller."""


def to_bytes(need: Capability) -> bytes:
    """`need` as compact JSON in UTF-8: its name, attributes and version, in a list."""
    value = [need.name, need.attributes, need.version]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(256)
def from_bytes(data: bytes) -> Capability:
    """The need that `to_bytes` wrote; raises `InvalidArgument` for all else.

    Only what `to_bytes` gives is read: one need has one form, and nothing in it is passed over.
    """
    if len(data) > NEED_LIMIT:
        raise InvalidArgument(f"a need of {len(data)} bytes, over {NEED_LIMIT}")
    try:
        value: Any = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise InvalidArgument("a need that is no JSON") from None
    if not isinstance(value, list) or len(value) != 3:
        raise InvalidArgument("a need is a list of name, attributes and version")
    need = Capability(*value)
    if to_bytes(need) != data:
        raise InvalidArgument(f"the need of {need.name} is not in its one form")
    return need
