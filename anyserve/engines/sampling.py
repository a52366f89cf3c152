"""How a text is to be chosen: `Sampling`, checked before any of it reaches an engine.

Engines take a temperature of -1 or a `stop` that is a dict without a word and do something with
it, so types, ranges and sizes are all held here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from anyserve.errors import InvalidArgument, Unimplemented

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_SAMPLES = 8
MAX_TOP_LOGPROBS = 20
MAX_CONSTRAINT = 16_384
"""Characters of a JSON schema or a regular expression."""
MAX_NAME = 255
_INT32 = 2**31 - 1
_UINT64 = 2**64 - 1

ALIASES = {"stop_words": "stop", "random_seed": "seed"}
"""Names that TensorRT-LLM's backend has for what vLLM's names otherwise."""

REFUSED = {
    "grammar": "raw grammars are not taken, since one can kill the engine; use json_schema",
}
"""What other servers take and this one refuses in words, rather than ignore it."""

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _whole(least: int, most: int) -> Validator:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArgument(
                f"{field.name}: a whole number is expected, not a {type(value).__name__}"
            )
        if not least <= value <= most:
            raise InvalidArgument(f"{field.name}: {value} is not in the range {least} to {most}")

    return check


def _real(least: float, most: float, *, above: bool = False) -> Validator:
    """least <= value <= most, or least < value <= most where `above`."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidArgument(
                f"{field.name}: a number is expected, not a {type(value).__name__}"
            )
        if not math.isfinite(value):
            raise InvalidArgument(f"{field.name}: {value} is not finite")
        if not least <= value <= most or (above and value == least):
            bound = f"over {least:g} and up" if above else f"{least:g}"
            raise InvalidArgument(
                f"{field.name}: {value:g} is not in the range {bound} to {most:g}"
            )

    return check


def _stops(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(stop, str) for stop in value):
        raise InvalidArgument(f"{field.name}: a string or a list of strings is expected")
    if len(value) > MAX_STOPS:
        raise InvalidArgument(f"{field.name}: {len(value)} strings, but at most {MAX_STOPS} count")
    for stop in value:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise InvalidArgument(
                f"{field.name}: a string of {len(stop)} characters, not 1 to {MAX_STOP_LENGTH}"
            )


def _flag(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidArgument(
            f"{field.name}: true or false is expected, not a {type(value).__name__}"
        )


def _text(most: int) -> Validator:
    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, str):
            raise InvalidArgument(f"{field.name}: text is expected, not a {type(value).__name__}")
        if not 1 <= len(value) <= most:
            raise InvalidArgument(f"{field.name}: {len(value)} characters, not 1 to {most}")

    return check


def _schema(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    """JSON of an object; which keywords an engine keeps is for it to say."""
    _text(MAX_CONSTRAINT)(_, field, value)
    try:
        schema = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{field.name}: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidArgument(f"{field.name}: an object is expected")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_optional = attrs.validators.optional


@attrs.frozen
class Sampling:
    """How to choose the tokens of one text. Raises `InvalidArgument` naming the parameter."""

    max_tokens: int = attrs.field(default=256, validator=_whole(1, _INT32))
    """The text ends here with finish reason `length`, or where the context is full."""
    temperature: float = attrs.field(default=0.0, validator=_real(0, 10))
    """0 takes the likeliest token each time."""
    top_p: float = attrs.field(default=1.0, validator=_real(0, 1, above=True))
    top_k: int = attrs.field(default=0, validator=_whole(-1, _INT32))
    """Choose among that many; 0 or -1: among all."""
    min_p: float = attrs.field(default=0.0, validator=_real(0, 1))
    stop: tuple[str, ...] = attrs.field(default=(), validator=_stops)
    """The text ends before the first of these, which is not part of it."""
    seed: int | None = attrs.field(default=None, validator=_optional(_whole(0, _UINT64)))
    """None: another one each time. With `n`, texts after the first count up from it."""
    presence_penalty: float = attrs.field(default=0.0, validator=_real(-2, 2))
    frequency_penalty: float = attrs.field(default=0.0, validator=_real(-2, 2))
    repetition_penalty: float = attrs.field(default=1.0, validator=_real(0, 10, above=True))
    ignore_eos: bool = attrs.field(default=False, validator=_flag)
    """The model can't end the text."""
    json_schema: str | None = attrs.field(default=None, validator=_optional(_schema))
    """The text is JSON of this schema."""
    regex: str | None = attrs.field(default=None, validator=_optional(_text(MAX_CONSTRAINT)))
    """The whole text matches this."""
    n: int = attrs.field(default=1, validator=_whole(1, MAX_SAMPLES))
    """How many texts."""
    logprobs: bool = attrs.field(default=False, validator=_flag)
    top_logprobs: int = attrs.field(default=0, validator=_whole(0, MAX_TOP_LOGPROBS))
    """How many likely tokens to tell in place of each; needs `logprobs`."""
    return_token_ids: bool = attrs.field(default=False, validator=_flag)
    priority: int = attrs.field(default=0, validator=_whole(-_INT32, _INT32))
    """Texts with a higher one go first."""
    lora: str | None = attrs.field(default=None, validator=_optional(_text(MAX_NAME)))
    """The name of an adapter that the engine has loaded."""

    def __attrs_post_init__(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgument("top_logprobs: only together with logprobs")
        if self.json_schema is not None and self.regex is not None:
            raise InvalidArgument("regex: not together with json_schema")

    def asked(self) -> frozenset[str]:
        """The names of the parameters that are not at their default."""
        return frozenset(
            [name for name, default in _DEFAULTS.items() if getattr(self, name) != default]
        )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sampling:
        """The sampling that a request's `values` ask for by name; None stands for the default.

        Numbers may be written as text, as clients of vLLM's backend do; `stop` may be one string.
        Raises `InvalidArgument`, also for a name it doesn't know or one given under two names,
        and `Unimplemented` for one that is refused.
        """
        known: dict[str, Any] = {}
        for given, value in values.items():
            if given in REFUSED:
                raise Unimplemented(f"{given}: {REFUSED[given]}")
            name = ALIASES.get(given, given)
            if given not in NAMES:
                raise InvalidArgument(
                    f"{given[:40]!r} is no sampling parameter; there are {', '.join(NAMES)}"
                )
            if name in known:
                raise InvalidArgument(f"{name}: given twice, once as {given}")
            if value is not None:
                known[name] = _from_request(name, value)
        return cls(**known)


_DEFAULTS = {field.name: field.default for field in attrs.fields(Sampling)}
NAMES = (*_DEFAULTS, *ALIASES)
"""The parameters' names, aliases included."""

BASIC = frozenset({"max_tokens", "n"})
"""What every engine obeys: it stops after `max_tokens`, and can be called `n` times."""

_WHOLE = frozenset({"max_tokens", "top_k", "seed", "n", "top_logprobs", "priority"})
_TEXTS = frozenset({"json_schema", "regex", "lora"})
_FLAGS = frozenset({"ignore_eos", "logprobs", "return_token_ids"})


def _from_request(name: str, value: Any) -> Any:
    if name == "stop":
        if isinstance(value, list):
            return tuple(value)
        return (value,) if isinstance(value, str) else value
    if name == "json_schema" and isinstance(value, dict):
        return json.dumps(value)
    if name in _TEXTS or name in _FLAGS or not isinstance(value, str):
        return value
    try:
        return int(value) if name in _WHOLE else float(value)
    except ValueError:
        raise InvalidArgument(f"{name}: {value[:40]!r} is not a number") from None
