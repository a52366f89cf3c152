"""The algebra of needs and offers: which offer satisfies a need, and which of them to take.

A `Capability` is a dotted name, most general first (`decode`, `decode.heavy`), with attributes
and a version. It stands for both sides: what a request needs and what a replica offers. An offer
*satisfies* a need when

* the need's name is the offer's or an ancestor of it,
* each `max_*` attribute needed is at most the offer's, each `min_*` at least the offer's,
* every other attribute needed, and the version where one is, equals the offer's.

This is a partial order. `power` is a total one that agrees with it. Everything here is a pure
function of values.
"""

from __future__ import annotations

import heapq
import math
import operator
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

import attrs

from anyserve.errors import InvalidArgument

Attribute = str | int | float | bool

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_NAME_LIMIT = 255
"""Longest capability name in characters: a file name's limit, which model names inherit."""
_WORD_LIMIT = 16
"""Words of a name. Each is an ancestor, and indexes hold a name under all of them."""
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")
_ATTRIBUTE_LIMIT = 16
"""Attributes of one capability."""
_TEXT_LIMIT = 255
"""Characters of an attribute that is text."""
_VERSION = re.compile(r"[0-9]{0,19}")
_COMPARE = {"max_": operator.ge, "min_": operator.le}
"""How an offered limit compares with the one needed, by the first four characters of its name."""


def check_name(name: str) -> str:
    """`name` itself when it is a well-formed capability name; raises `InvalidArgument` if not."""
    if not _text(name, "the model name"):
        raise InvalidArgument("the model name is empty; it names a capability, such as 'decode'")
    if len(name) > _NAME_LIMIT:
        raise InvalidArgument(f"the model name is {len(name)} characters long, over {_NAME_LIMIT}")
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"model name {name!r}: a capability is dotted words of letters, digits, '_' and '-'"
        )
    if name.count(".") >= _WORD_LIMIT:
        raise InvalidArgument(f"model name {name!r} has more than {_WORD_LIMIT} words")
    return name


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} is of type {type(value).__name__}, not text")
    return value


def is_limit(attribute: str) -> bool:
    """Whether the attribute of that name is a limit, which an offer may exceed."""
    return attribute.startswith(("max_", "min_"))


def _check_attribute(name: str, value: Attribute) -> None:
    if not _ATTRIBUTE.fullmatch(_text(name, "an attribute's name")):
        raise InvalidArgument(
            f"attribute name {name!r:.80} is not 1 to 64 letters, digits, '_' and '.'"
        )
    if isinstance(value, str):
        if is_limit(name):
            raise InvalidArgument(f"attribute {name}={value!r:.80} is not a number")
        if len(value) > _TEXT_LIMIT or not value.isprintable():
            raise InvalidArgument(
                f"attribute {name} is over {_TEXT_LIMIT} characters long or can't be printed"
            )
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise InvalidArgument(f"attribute {name} has more than 64 bits")
    elif not isinstance(value, float):
        raise InvalidArgument(
            f"attribute {name} is of type {type(value).__name__}, not text, number or bool"
        )
    elif not math.isfinite(value):
        raise InvalidArgument(f"attribute {name}={value} is not a finite number")


def _checked(attributes: Mapping[str, Attribute]) -> Mapping[str, Attribute]:
    if not isinstance(attributes, Mapping):
        raise InvalidArgument(f"attributes are a mapping, not of type {type(attributes).__name__}")
    if len(attributes) > _ATTRIBUTE_LIMIT:
        raise InvalidArgument(f"{len(attributes)} attributes, over {_ATTRIBUTE_LIMIT}")
    for name, value in attributes.items():
        _check_attribute(name, value)
    return dict(sorted(attributes.items()))


def _check_version(version: str) -> str:
    if not _VERSION.fullmatch(_text(version, "the version")):
        raise InvalidArgument(f"version {version!r:.80} is not a number of at most 19 digits")
    return version


@attrs.frozen
class Capability:
    """A need or an offer: a dotted name, attributes and a version.

    Raises `InvalidArgument` for a name, an attribute or a version that none can have.
    """

    name: str = attrs.field(converter=check_name)
    """Dotted, most general word first."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict, converter=_checked)
    """`max_*` and `min_*` are limits and compare as numbers; all others must be equal."""
    version: str = attrs.field(default="", converter=_check_version)
    """Decimal digits. Empty: a need for any version, an offer that has none."""

    def __str__(self) -> str:
        text = self.name
        if self.attributes:
            text += f"[{', '.join(f'{key}={value}' for key, value in self.attributes.items())}]"
        return f"{text} version {self.version}" if self.version else text

    def is_kind_of(self, name: str) -> bool:
        """Whether `name` is this one's or an ancestor of it."""
        return self.name == name or self.name.startswith(name + ".")

    def satisfies(self, need: Capability) -> bool:
        """Whether this offer is enough for `need`."""
        if not self.is_kind_of(need.name) or need.version not in ("", self.version):
            return False
        offered = self.attributes
        for key, needed in need.attributes.items():
            if not _enough(key, needed, offered.get(key)):
                return False
        return True


def _enough(key: str, needed: Attribute, offered: Attribute | None) -> bool:
    if offered is None:
        return False
    return bool(_COMPARE.get(key[:4], operator.eq)(offered, needed))


def why_not(offer: Capability, need: Capability) -> str | None:
    """Why `offer` does not satisfy `need`, in words and in full; None when it does."""
    if not offer.is_kind_of(need.name):
        return f"{offer.name} is not {need.name} or a kind of it"
    reasons = [
        _shortfall(key, needed, offer.attributes.get(key))
        for key, needed in need.attributes.items()
        if not _enough(key, needed, offer.attributes.get(key))
    ]
    if need.version not in ("", offer.version):
        reasons.append(_shortfall("version", need.version, offer.version or None))
    return f"{offer.name} has {', and '.join(reasons)}" if reasons else None


def _shortfall(key: str, needed: Attribute, offered: Attribute | None) -> str:
    if offered is None:
        return f"no {key}"
    beyond = {"max_": " or more", "min_": " or less"}.get(key[:4], "")
    return f"{key}={offered}, not {needed}{beyond}"


Power = tuple[object, ...]
"""What `power` gives: to be compared and hashed, not to be read."""


def tier(offer: Capability) -> tuple[object, ...]:
    """How powerful `offer` is, as a sort key, equal for many: it is what `power` compares first.

    A more specific name is more powerful; of two as specific, the one with more limits, then with
    larger `max_*` and smaller `min_*`, then with more attributes.
    """
    limits: list[tuple[str, object]] = []
    for key, value in offer.attributes.items():
        if is_limit(key) and not isinstance(value, str):
            limits.append((key, value if key.startswith("max_") else -value))
    return (offer.name.count("."), len(limits), *limits, len(offer.attributes))


def power(offer: Capability) -> Power:
    """A sort key: the least powerful offer first. It is total: equal for equal offers alone.

    That of its `tier`, with the ties broken: by values, the newer version before the older, by
    name. An offer that satisfies another is never less powerful.
    """
    rest = [
        (key, isinstance(value, str), value)
        for key, value in offer.attributes.items()
        if not is_limit(key)
    ]
    newest_first = (bool(offer.version), -int(offer.version or 0), offer.version)
    return (*tier(offer), *rest, *newest_first, offer.name)


def satisfying(need: Capability, offers: Iterable[Capability]) -> list[Capability]:
    """The offers that satisfy `need`, least powerful first, whatever order they came in."""
    return sorted((offer for offer in offers if offer.satisfies(need)), key=power)


def least(need: Capability, offers: Iterable[Capability]) -> Capability | None:
    """The least powerful of the offers that satisfy `need`; None when none does."""
    return min((offer for offer in offers if offer.satisfies(need)), key=power, default=None)


def upgrade(need: Capability, offers: Iterable[Capability]) -> Capability | None:
    """The least need that one of `offers` satisfies and that satisfies `need`; None without one.

    It is `need` under the name of the least powerful offer: the same one elsewhere, or a stronger
    one. Attributes stay as they are needed, so that it asks for no more than it must.
    """
    offer = least(need, offers)
    return None if offer is None else attrs.evolve(need, name=offer.name)


@attrs.frozen
class Miss:
    """An offer that does not satisfy a need."""

    offer: Capability
    why: str


NEAREST = 8
"""Offers that a refusal explains."""
_NAMED = 32
"""Offers that it names where there is nothing to explain."""
_EXPLANATION_LIMIT = 2000
"""Characters of a refusal."""


def nearest(need: Capability, offers: Iterable[Capability], count: int = NEAREST) -> list[Miss]:
    """At most `count` different offers that come closest to `need` without satisfying it.

    Those of its name and kind come first, and of these the ones that lack least; then those whose
    names begin most like it.
    """

    def distance(offer: Capability) -> tuple[object, ...]:
        lacking = sum(
            not _enough(key, needed, offer.attributes.get(key))
            for key, needed in need.attributes.items()
        ) + (need.version not in ("", offer.version))
        alike = _shared(offer.name, need.name)
        return (not offer.is_kind_of(need.name), -alike, lacking, offer.name, power(offer))

    different = {power(offer): offer for offer in offers}.values()
    misses = (Miss(offer, why) for offer in different if (why := why_not(offer, need)))
    return heapq.nsmallest(count, misses, key=lambda miss: distance(miss.offer))


def _shared(a: str, b: str) -> int:
    """Characters that both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if x != y), min(len(a), len(b)))


def explain_absence(need: Capability, offers: Iterable[Capability]) -> str:
    """Why none of `offers` satisfies `need`, and which come nearest: one line of bounded length."""
    misses = nearest(need, offers, _NAMED + 1)
    kinds = [miss.why for miss in misses if miss.offer.is_kind_of(need.name)]
    if kinds:
        more = ", and more" if len(kinds) > NEAREST else ""
        text = f"nothing here satisfies {need}: {'; '.join(kinds[:NEAREST])}{more}"
    else:
        more = ", and more" if len(misses) > _NAMED else ""
        misses = misses[:_NAMED]
        names = ", ".join(dict.fromkeys(miss.offer.name for miss in misses)) or "nothing"
        text = f"no capability {need.name!r} here; there is: {names}{more}"
    return text if len(text) <= _EXPLANATION_LIMIT else text[: _EXPLANATION_LIMIT - 1] + "…"


NEED_PREFIX = "need."
"""Request parameters with this prefix are attributes that the request needs (`need.model`)."""
NEED_METADATA_PREFIX = "anyserve-need-"
"""gRPC metadata with this prefix are the same (`anyserve-need-model`)."""


def need_of(
    name: str,
    parameters: Mapping[str, Attribute],
    metadata: Iterable[tuple[str, str | bytes]] = (),
    version: str = "",
) -> Capability:
    """What a request needs: the capability `name`, that version, and the attributes it carries.

    Parameters win over metadata. Limits given as text are read as numbers. Raises
    `InvalidArgument` for what no capability can have.
    """
    found: dict[str, Attribute] = {}
    for key, value in metadata:
        if key.startswith(NEED_METADATA_PREFIX) and isinstance(value, str):
            found[key[len(NEED_METADATA_PREFIX) :].replace("-", "_")] = value
    for key, parameter in parameters.items():
        if key.startswith(NEED_PREFIX):
            found[key[len(NEED_PREFIX) :]] = parameter
    if not found:
        return _plain(name, version)
    return _with_attributes(name, version, tuple(found.items()))


@lru_cache(256)
def _plain(name: str, version: str) -> Capability:
    """A need without attributes, as nearly all are."""
    return Capability(name, version=version)


@lru_cache(256)
def _with_attributes(
    name: str, version: str, attributes: tuple[tuple[str, Attribute], ...]
) -> Capability:
    return Capability(name, {key: _typed(key, value) for key, value in attributes}, version)


def _typed(key: str, value: Attribute) -> Attribute:
    if is_limit(key) and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value
