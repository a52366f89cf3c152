"""Messages of gRPC's KServe as plain values for JSON: names as in the .proto files. Pure."""

from __future__ import annotations

import base64
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A message, or what is in one; what is not set is left out, but for numbers and flags."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not dataclasses.is_dataclass(value):
        return value
    named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: plain(each) for name, each in named.items() if each not in (None, "", [], {})}
