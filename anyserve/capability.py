"""The algebra of needs and offers: which offer satisfies a need, and which of them to take.

A `Capability` is a dotted name, most general first (`decode`, `decode.heavy`), with attributes.
It stands for both sides: what a request needs and what a replica offers. An offer *satisfies*
a need when

* the need's name is the offer's or an ancestor of it,
* each `max_*` attribute needed is at most the offer's, each `min_*` at least the offer's,
* every other attribute needed equals the offer's.

Everything here is a pure function of values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import attrs

from anyserve.errors import InvalidArgument

Attribute = str | int | float | bool

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_NAME_LIMIT = 255
"""Longest capability name in characters: a file name's limit, which model names inherit."""


def check_name(name: str) -> str:
    """`name` itself when it is a well-formed capability name; raises `InvalidArgument` if not."""
    if not name:
        raise InvalidArgument("the model name is empty; it names a capability, such as 'decode'")
    if len(name) > _NAME_LIMIT:
        raise InvalidArgument(f"the model name is {len(name)} characters long, over {_NAME_LIMIT}")
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"model name {name!r}: a capability is dotted words of letters, digits, '_' and '-'"
        )
    return name


def _freeze(attributes: Mapping[str, Attribute]) -> Mapping[str, Attribute]:
    return dict(sorted(attributes.items()))


@attrs.frozen
class Capability:
    """A need or an offer: a dotted name and attributes."""

    name: str
    """Dotted, most general word first."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict, converter=_freeze)
    """`max_*` and `min_*` are limits and compare as numbers; all others must be equal."""

    def __str__(self) -> str:
        if not self.attributes:
            return self.name
        return f"{self.name}[{', '.join(f'{k}={v}' for k, v in self.attributes.items())}]"

    def satisfies(self, need: Capability) -> bool:
        """Whether this offer is enough for `need`."""
        return why_not(self, need) is None


def why_not(offer: Capability, need: Capability) -> str | None:
    """Why `offer` does not satisfy `need`, in words; None when it does."""
    if offer.name != need.name and not offer.name.startswith(need.name + "."):
        return f"{offer.name} is not {need.name} or a kind of it"
    for key, needed in need.attributes.items():
        offered = offer.attributes.get(key)
        if offered is None:
            return f"{offer.name} has no {key}"
        reason = _compare(key, needed, offered)
        if reason is not None:
            return f"{offer.name} has {reason}"
    return None


def _compare(key: str, needed: Attribute, offered: Attribute) -> str | None:
    if key.startswith(("max_", "min_")):
        if isinstance(needed, str) or isinstance(offered, str):
            return f"{key}={offered}, which is not comparable with {needed!r}"
        enough = offered >= needed if key.startswith("max_") else offered <= needed
        return None if enough else f"{key}={offered}, and {needed} is needed"
    return None if offered == needed else f"{key}={offered}, not {needed}"


def power(offer: Capability) -> tuple[object, ...]:
    """A sort key: the least powerful offer first, ties broken by name and attributes.

    A more specific name is more powerful, then larger `max_*` limits are.
    """
    limits = tuple(
        (key, float(value))
        for key, value in offer.attributes.items()
        if key.startswith("max_") and not isinstance(value, str)
    )
    rest = tuple((key, str(value)) for key, value in offer.attributes.items())
    return (offer.name.count("."), limits, offer.name, rest)


def satisfying(need: Capability, offers: Iterable[Capability]) -> list[Capability]:
    """The offers that satisfy `need`, least powerful first, whatever order they came in."""
    return sorted((offer for offer in offers if offer.satisfies(need)), key=power)


def explain_absence(need: Capability, offers: Iterable[Capability]) -> str:
    """One line that says why none of `offers` satisfies `need`, and what there is."""
    known = sorted(offers, key=power)
    names = ", ".join(dict.fromkeys(offer.name for offer in known)) or "nothing"
    by_name = [offer for offer in known if offer.satisfies(Capability(need.name))]
    if not by_name:
        return f"no capability {need.name!r} here; there is: {names}"
    return f"nothing here satisfies {need}: {'; '.join(str(why_not(o, need)) for o in by_name)}"


NEED_PREFIX = "need."
"""Request parameters with this prefix are attributes that the request needs (`need.model`)."""
NEED_METADATA_PREFIX = "anyserve-need-"
"""gRPC metadata with this prefix are the same (`anyserve-need-model`)."""


def need_of(
    name: str, parameters: Mapping[str, Attribute], metadata: Iterable[tuple[str, str | bytes]] = ()
) -> Capability:
    """What a request needs: the capability `name` and the attributes it carries.

    Parameters win over metadata. Limits given as text are read as numbers; one that is no number
    raises `InvalidArgument`.
    """
    found: dict[str, Attribute] = {}
    for key, value in metadata:
        if key.startswith(NEED_METADATA_PREFIX) and isinstance(value, str):
            found[key[len(NEED_METADATA_PREFIX) :].replace("-", "_")] = value
    for key, parameter in parameters.items():
        if key.startswith(NEED_PREFIX):
            found[key[len(NEED_PREFIX) :]] = parameter
    if not found:
        return _plain(name)
    return Capability(name, {key: _typed(key, value) for key, value in found.items()})


@lru_cache(256)
def _plain(name: str) -> Capability:
    """A need without attributes, as nearly all are."""
    return Capability(name)


def _typed(key: str, value: Attribute) -> Attribute:
    if not key.startswith(("max_", "min_")):
        return value
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InvalidArgument(f"need {key}={value!r} is not a number")
    return number
