"""JSON schemas are held to what the native side keeps, before it sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anyserve.engines.text.constraints import check_json_schema, constraint
from anyserve.errors import InvalidArgument


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "pattern": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": 1.5},
        "friends": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
        "kind": {"anyOf": [{"const": "x"}, {"enum": [1, None]}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def test_an_ordinary_schema_is_taken() -> None:
    check_json_schema(json.dumps(PERSON))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"not": {"type": "string"}},
        {"oneOf": [{"type": "string"}]},
        {"type": "string", "format": "made-up"},
        {"type": "text"},
        {"type": 5},
        {"type": []},
        {"enum": []},
        {"anyOf": []},
        {"properties": [1]},
        {"properties": {"a": 3}},
        {"items": {"pattern": "a"}},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": 1},
        {"required": [1]},
        {"type": "array", "maxItems": 10**9},
        {"type": "array", "minItems": -1},
        {"type": "string", "maxLength": True},
        {"type": "string", "minLength": 4, "maxLength": 3},
        {"type": "integer", "minimum": 10**30},
        {"enum": list(range(1000))},
        nested(40),
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_that_would_be_loosened_or_hurt_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidArgument, match="json_schema"):
        check_json_schema(json.dumps(schema))


def test_a_schema_leads_to_the_parser_that_has_limits() -> None:
    assert constraint('{"type":\n"string"}') == '%llguidance {}\nstart: %json {"type": "string"}'
