"""Policies by name, with values of their own: `prefix` or `prefix:fresh=0.5:load_weight=2`."""

from __future__ import annotations

import math
from typing import Any

import attrs

from anyserve_scheduler.routing import POLICIES, Policy

_NUMBERS = tuple(field.name for field in attrs.fields(Policy) if field.name != "prefix")


def policy_of(text: str) -> Policy:
    """The policy that `text` says; raises `ValueError` that names what is wrong with it."""
    name, *values = text.split(":")
    if name not in POLICIES:
        raise ValueError(f"{name!r} is none of {', '.join(POLICIES)}")
    changes: dict[str, Any] = dict(map(_number, values))
    return attrs.evolve(POLICIES[name], **changes)


def _number(text: str) -> tuple[str, float]:
    """One field and its value; `inf` is a number."""
    name, _, value = text.partition("=")
    if name not in _NUMBERS:
        raise ValueError(f"{name!r} is none of {', '.join(_NUMBERS)}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise ValueError(f"{name}: {value!r} is not a number of 0 or more")
    return name, number
