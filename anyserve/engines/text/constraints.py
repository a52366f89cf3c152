"""What a client may ask a text to be held to: a JSON schema, checked before native code sees it.

The native side has two ways to hold a text to something. The older, its own grammars, can be made
to crash (by depth, by a rule that can't be met) or to take minutes for one token (by ambiguity),
and no bound on a grammar's text prevents that: no client gets near it. The newer, llguidance, has
limits of its own and answers what it can't do by letting everything through without a word; so
only keywords that it keeps are taken, their size is bounded, and the finished text is looked at.
"""

from __future__ import annotations

import json
from typing import Any

from anyserve.errors import InvalidArgument

MAX_COUNT = 256
"""The largest minItems, maxItems, minLength and maxLength."""
MAX_DEPTH = 32
"""Levels of objects and arrays in a schema; past 48 the native side no longer keeps it."""
MAX_NODES = 512
"""Objects, arrays and values in a schema."""

_COUNTS = {"minItems", "maxItems", "minLength", "maxLength"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_SCHEMAS = {"items", "additionalProperties"}
_SCHEMA_LISTS = {"anyOf", "allOf", "prefixItems"}
_SCHEMA_MAPS = {"properties", "$defs", "definitions"}
_PLAIN = {"type", "enum", "const", "required", "$ref"}
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"}
_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}


def check_json_schema(text: str) -> None:
    """Raise `InvalidArgument` unless the schema in JSON `text` is one that is kept for certain.

    Taken: type, enum, const, properties, required, additionalProperties, items, prefixItems,
    anyOf, allOf, `$ref` inside the schema, the bounds of numbers, lengths and counts, and notes
    such as title.
    """
    schema = json.loads(text)
    if _measure(schema, 1) > MAX_NODES:
        raise InvalidArgument(f"json_schema: more than {MAX_NODES} values")
    _check_schema(schema, "#")


def constraint(json_schema: str) -> str:
    """A checked schema in the form that leads to llguidance, for prompts and for chats.

    The native `json_schema` parameter leads to the older way in chats.
    """
    return f"%llguidance {{}}\nstart: %json {json.dumps(json.loads(json_schema))}"


def _measure(value: Any, depth: int) -> int:
    """How many values there are in `value`; raises `InvalidArgument` when they nest too deep."""
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"json_schema: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return 1 + sum(_measure(item, depth + 1) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(_measure(item, depth + 1) for item in value)
    return 1


def _check_schema(schema: Any, where: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InvalidArgument(f"json_schema: {where}: a schema is an object or a boolean")
    for key, value in schema.items():
        here = f"{where}/{key[:40]}"
        if key in _SCHEMAS:
            _check_schema(value, here)
        elif key in _SCHEMA_MAPS and isinstance(value, dict):
            for name, inner in value.items():
                _check_schema(inner, f"{here}/{name[:40]}")
        elif key in _SCHEMA_LISTS and isinstance(value, list) and value:
            for index, inner in enumerate(value):
                _check_schema(inner, f"{here}/{index}")
        elif not _fits(key, value):
            raise InvalidArgument(
                f"json_schema: {here}: not supported here, or not with this value"
            )
    for least, most in (("minItems", "maxItems"), ("minLength", "maxLength")):
        if schema.get(least, 0) > schema.get(most, MAX_COUNT):
            raise InvalidArgument(f"json_schema: {where}: {least} is more than {most}")


def _fits(key: str, value: Any) -> bool:
    """Whether a keyword without schemas inside it has a value that the native side keeps."""
    if key in _NOTES:
        return True
    if key == "type":
        kinds = value if isinstance(value, list) else [value]
        return bool(kinds) and all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
    if key in _COUNTS:
        return _is_number(value, int) and 0 <= value <= MAX_COUNT
    if key in _NUMBERS:
        return _is_number(value, int | float) and abs(value) <= 2**53
    if key == "enum":
        return isinstance(value, list) and bool(value)
    if key == "required":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key == "$ref":
        return isinstance(value, str) and value.startswith("#")
    return key in _PLAIN


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
