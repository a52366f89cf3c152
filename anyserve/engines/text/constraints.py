"""What a client may ask a text to be held to, bounded before it reaches native code.

Two ways, with different risks:

- A JSON schema becomes a parser with limits of its own, which answers what it can't do by letting
  everything through. So only keywords that it keeps are taken, and the size is bounded.
- A GBNF grammar can crash the parser by depth (bounded here) and can make one token take minutes
  by ambiguity (no bound on the text prevents that), so clients may send none unless the engine's
  owner trusts them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from anyserve.errors import InvalidArgument

MAX_LENGTH = 16_384
"""Characters of a grammar or a schema."""
MAX_GROUPS = 256
"""Opening parentheses in a grammar, wherever they stand: a bound on its depth that needs no
parser which would have to agree with the native one."""
MAX_REPEATS = 256
"""The largest number in a grammar's `{m,n}`, and the largest minItems, maxItems and the like."""
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


def check_grammar(value: object) -> None:
    """Raise `InvalidArgument` unless `value` is a grammar too small to hurt the native parser."""
    text = _text("grammar", value)
    if "\0" in text or not text.strip():
        raise InvalidArgument("grammar: it is empty or has a NUL character")
    if text.count("(") > MAX_GROUPS:
        raise InvalidArgument(f"grammar: more than {MAX_GROUPS} groups")
    for braces in re.findall(r"\{[^}]*", text):
        if any(len(run) > 9 or int(run) > MAX_REPEATS for run in re.findall(r"[0-9]+", braces)):
            raise InvalidArgument(f"grammar: a repetition of more than {MAX_REPEATS}")


def check_json_schema(value: object) -> None:
    """Raise `InvalidArgument` unless JSON text `value` is a schema that is kept for certain.

    Taken: type, enum, const, properties, required,
    additionalProperties, items, prefixItems, anyOf, allOf, `$ref` inside the schema, the bounds
    of numbers, lengths and counts, and notes such as title.
    """
    text = _text("json_schema", value)
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"json_schema: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidArgument("json_schema: an object is expected")
    if _measure(schema, 1) > MAX_NODES:
        raise InvalidArgument(f"json_schema: more than {MAX_NODES} values")
    _check_schema(schema, "#")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: text is expected, not a {type(value).__name__}")
    if len(value) > MAX_LENGTH:
        raise InvalidArgument(
            f"{name}: {len(value)} characters, but at most {MAX_LENGTH} are taken"
        )
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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
        if schema.get(least, 0) > schema.get(most, MAX_REPEATS):
            raise InvalidArgument(f"json_schema: {where}: {least} is more than {most}")


def _fits(key: str, value: Any) -> bool:
    """Whether a keyword without schemas inside it has a value that the native side keeps."""
    if key in _NOTES:
        return True
    if key == "type":
        kinds = value if isinstance(value, list) else [value]
        return bool(kinds) and all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
    if key in _COUNTS:
        return _is_number(value, int) and 0 <= value <= MAX_REPEATS
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
