"""What clients call a model: a capability by its name, or the model behind one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from anyserve.capability import Attribute, Capability
from anyserve.errors import NotFound
from anyserve.http.backend import Backend, Offered
from anyserve.http.openai.errors import Refused, refused
from anyserve.pairs import DISAGGREGATION, MODEL, PREFILL

_FRESH = 1.0
"""Seconds for which offers are not looked at again; a large fleet has thousands."""
_STALE = 0.1
"""The same for a model that is not among them."""
_LISTED = 100
_MAX_NAME = 256


@attrs.frozen
class Target:
    """What a request asks for, and what is known of those who serve it."""

    model: str
    """As the client calls it."""
    capability: str
    attributes: tuple[tuple[str, Attribute], ...] = ()
    """What is needed beside the name."""
    offer: Mapping[str, Attribute] = attrs.field(factory=dict, eq=False)
    """Attributes of one who offers it; none where it is offered elsewhere."""


class Models:
    """The models of whoever serves."""

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._created = int(time.time())
        self._read_at = -_FRESH
        self._targets: dict[str, Target] = {}

    def target(self, model: str, root: str) -> Target:
        """What `model` stands for; raises `Refused` where there is no such model.

        root: the capability whose descendants serve such requests, such as `decode`.
        """
        found = self._find(model, _FRESH) or self._find(model, _STALE)
        if found is not None:
            return found
        if self._backend.relays and 0 < len(model) <= _MAX_NAME:
            # The scheduler knows more than is offered here.
            if model == root or model.startswith(f"{root}."):
                return Target(model, model)
            return Target(model, root, ((MODEL, model),))
        known = ", ".join(list(self._targets)[:_LISTED]) or "none"
        raise self._missing(f"model: there is no {model[:_MAX_NAME]!r}; there are {known}")

    def listing(self) -> list[dict[str, Any]]:
        """All models, as OpenAI's API describes them."""
        self._read(_STALE)
        return [self._described(target) for target in self._targets.values()]

    def description(self, model: str) -> dict[str, Any]:
        """One of them; raises `Refused` where there is no such model."""
        target = self._find(model, _STALE)
        if target is None:
            raise self._missing(f"there is no model {model[:_MAX_NAME]!r}")
        return self._described(target)

    def _missing(self, message: str) -> Refused:
        error = self._backend.missing(NotFound(message))
        if isinstance(error, NotFound):
            return Refused(error.message, param="model", status=404, code="model_not_found")
        return refused(error)

    def _find(self, model: str, age: float) -> Target | None:
        self._read(age)
        return self._targets.get(model)

    def _read(self, age: float) -> None:
        time = self._clock()
        if time - self._read_at >= age:
            self._read_at = time
            self._targets = targets(self._backend.offers())

    def _described(self, target: Target) -> dict[str, Any]:
        described: dict[str, Any] = {
            "id": target.model,
            "object": "model",
            "created": self._created,
            "owned_by": "anyserve",
        }
        context = target.offer.get("max_context")
        if isinstance(context, int):
            described["max_model_len"] = context  # as vLLM and SGLang name it
        return described


def targets(offers: Iterable[Offered]) -> dict[str, Target]:
    """By what clients may call them: each model, then the capabilities that have one.

    A model stands for whatever of its kind has it: `decode.heavy` serves `decode` with its model.
    """
    models: dict[str, Target] = {}
    capabilities: dict[str, Target] = {}
    for offered in offers:
        capability: Capability = offered.capability
        model = capability.attributes.get(MODEL)
        if not isinstance(model, str) or capability.attributes.get(DISAGGREGATION) == PREFILL:
            continue
        root = capability.name.partition(".")[0]
        offer = capability.attributes
        models.setdefault(model, Target(model, root, ((MODEL, model),), offer))
        capabilities.setdefault(
            capability.name, Target(capability.name, capability.name, (), offer)
        )
    return models | capabilities
