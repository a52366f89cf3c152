"""What a replica counts, without one: the bound of its labels, and what it keeps for nobody."""

from __future__ import annotations

from typing import Any

import pytest
from anyserve_actors import Supervisor
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from anyserve.capability import Capability
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.objects.arena import Arena
from anyserve.offers import Offer
from anyserve.replica import dispatcher as dispatcher_module
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.metrics import ReplicaMetrics
from anyserve.replica.statistics import Outcome


def metrics_of(dispatcher: Dispatcher) -> ReplicaMetrics:
    return ReplicaMetrics(dispatcher, Arena(prefix="anyserve-test"), Supervisor(), lambda: None)


def scraped(metrics: ReplicaMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def answered(pool: Any) -> None:
    pool.statistics.record(Outcome.ANSWERED, seconds=1.0, queued=0.5, batch=1, wall_ms=0)
    pool.timings.first.observe(0.25)


async def test_any_number_of_capabilities_has_a_bounded_number_of_labels() -> None:
    dispatcher = Dispatcher(is_timed=True)
    metrics = metrics_of(dispatcher)
    first = dispatcher.declare(Offer(Capability("zebra")))
    answered(first)
    scraped(metrics)
    for number in range(100_000):
        answered(dispatcher.declare(Offer(Capability(f"c{number}"))))
    found = scraped(metrics)
    counts = found["anyserve_requests_total"]
    labels = {capability for capability, _ in counts}
    assert len(labels) == MOST_LABELS
    assert "zebra" in labels  # what was there keeps its label
    assert sum(counts.values()) == 100_001
    assert counts[OTHER, "answered"] == 100_001 - (MOST_LABELS - 1)
    firsts = found["anyserve_first_response_seconds_count"]
    assert firsts[OTHER,] == 100_001 - (MOST_LABELS - 1)
    assert sum(firsts.values()) == 100_001


def test_nothing_is_timed_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> None:
        raise AssertionError("times are kept for nobody")

    monkeypatch.setattr(dispatcher_module, "Timings", made)
    assert Dispatcher().declare(Offer(Capability("echo"))).timings is None
    with pytest.raises(AssertionError):
        Dispatcher(is_timed=True).declare(Offer(Capability("echo")))
