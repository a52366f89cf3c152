"""The parts that a request's CPU time is told by, and which module belongs to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

COMPONENTS = {
    "HTTP/1.1: parsed, written": ("anyserve.http", "httptools"),
    "OpenAI's JSON, tensors": ("anyserve.http.openai", "msgspec"),
    "HTTP/2": ("anyserve.transport.http2", "ngh2"),
    "connection": ("anyserve.transport.trio_connection", "anyserve.transport.flood"),
    "call": ("anyserve.transport",),
    "codec: scan, join": ("anyserve_protos",),
    "KServe service": (
        "anyserve.replica.service",
        "anyserve.replica.inference",
        "anyserve.replica.unary",
        "anyserve.replica.stream_infer",
    ),
    "worker link": (
        "anyserve.link",
        "anyserve.objects",
        "anyserve.replica.connection",
        "anyserve.replica.exchange",
        "anyserve.replica.worker_link",
        "anyserve.worker.session",
    ),
    "dispatch": (
        "anyserve.replica",
        "anyserve.capability",
        "anyserve.offers",
        "anyserve.deadlines",
        "anyserve.histogram",
        "anyserve.pairs",
        "anyserve.traces",
    ),
    "requests decoded": ("anyserve.worker.plans", "anyserve.worker.shared"),
    "responses encoded": (
        "anyserve.worker.responses",
        "anyserve.worker.templates",
        "anyserve.tensors",
        "anyserve.parameters",
    ),
    "handler run": (
        "anyserve.worker",
        "anyserve.replica.local",
        "anyserve.messages",
        "anyserve_actors",
    ),
    "handler": ("benchmarks", "examples"),
    "Trio, and waking": ("trio", "outcome", "anyserve.waiting", "anyserve.burst"),
    "asyncio": ("asyncio", "trio_asyncio"),
}
"""By the modules' names, or the packages' that they are in; the longest that fits counts."""

_BY_PREFIX = {prefix: name for name, prefixes in COMPONENTS.items() for prefix in prefixes}


def by_component(samples: Mapping[str, int]) -> Counter[str]:
    """Samples of modules, added up; a module that fits nowhere stands for itself."""
    counts: Counter[str] = Counter()
    for module, count in samples.items():
        counts[_component(module)] += count
    return counts


def _component(module: str) -> str:
    prefix = module
    while prefix:
        if prefix in _BY_PREFIX:
            return _BY_PREFIX[prefix]
        prefix = prefix.rpartition(".")[0]
    return module
