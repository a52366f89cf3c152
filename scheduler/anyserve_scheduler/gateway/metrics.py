"""What a scheduler counts, as families of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from prometheus_client import Metric

from anyserve.histogram import Histogram
from anyserve.http.metrics.families import Rows, counter, gauge, histogram, single
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.load import Load
from anyserve_scheduler.fleet import ReplicaState, ReplicaView
from anyserve_scheduler.gateway.meter import Measures, Meter
from anyserve_scheduler.gateway.ways import Ways

_REPLICA = ("replica",)


class SchedulerMetrics:
    """Reads what the scheduler counts. The names and their meaning are in `docs/metrics.md`."""

    def __init__(self, ways: Ways, meter: Meter) -> None:
        self._ways = ways
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
        """All of it, as it is now."""
        yield from self._requests()
        yield from self._way()
        yield from self._replicas()

    def _requests(self) -> Iterable[Metric]:
        measures = self._meter.measures
        yield counter(
            "anyserve_scheduler_requests",
            "Requests at the front door that have ended, by how",
            {
                (name, outcome.value): count
                for name, each in measures.items()
                for outcome, count in each.outcomes.items()
            },
            ("capability", "outcome"),
        )

        def rows(part: Callable[[Measures], Histogram]) -> Mapping[str, list[Histogram]]:
            return {name: [part(each)] for name, each in measures.items()}

        yield histogram(
            "anyserve_scheduler_request_seconds",
            "From the arrival of a request that was answered to its end",
            rows(lambda each: each.whole),
            "capability",
        )
        yield histogram(
            "anyserve_scheduler_first_response_seconds",
            "From a request's arrival to its first answer",
            rows(lambda each: each.first),
            "capability",
        )
        yield histogram(
            "anyserve_scheduler_between_responses_seconds",
            "From one answer of a request to the next",
            rows(lambda each: each.between),
            "capability",
        )

    def _way(self) -> Iterable[Metric]:
        ways = self._ways
        yield gauge(
            "anyserve_scheduler_in_flight_requests",
            "Requests on their way through the front door",
            single(ways.in_flight),
        )
        yield gauge(
            "anyserve_scheduler_waiting_requests",
            "Those of them that wait for a capability to be loaded",
            single(len(ways.unserved)),
        )
        yield counter(
            "anyserve_scheduler_decisions",
            "Times that a replica was chosen for a request, or none was found",
            single(ways.decisions),
        )
        yield counter(
            "anyserve_scheduler_retried_requests",
            "Times that a request went on since a replica had not taken it",
            single(ways.retried),
        )
        yield counter(
            "anyserve_scheduler_delegated_requests",
            "Requests that went on since a replica had handed them back",
            single(ways.delegated),
        )
        yield counter(
            "anyserve_scheduler_resumed_requests",
            "Requests that went on since a replica was lost with them",
            single(ways.resumed),
        )

    def _replicas(self) -> Iterable[Metric]:
        views = self._ways.registry.fleet().replicas
        states = Counter(view.state for view in views.values())
        yield gauge(
            "anyserve_scheduler_replicas",
            "Replicas that hold a lease",
            {(state.value,): states[state] for state in ReplicaState},
            ("state",),
        )
        yield gauge(
            "anyserve_scheduler_replica_running_requests",
            "Requests that a replica runs, as it reports",
            _loads(views, lambda load: load.running),
            _REPLICA,
        )
        yield gauge(
            "anyserve_scheduler_replica_queued_requests",
            "Requests that wait at a replica, as it reports",
            _loads(views, lambda load: load.queued),
            _REPLICA,
        )
        yield gauge(
            "anyserve_scheduler_replica_slots",
            "Requests that a replica may run at once",
            _loads(views, lambda load: load.slots),
            _REPLICA,
        )
        yield gauge(
            "anyserve_scheduler_replica_tokens_per_second",
            "Tokens that a replica gives, as it reports",
            _loads(views, lambda load: load.tokens_per_second),
            _REPLICA,
        )


def _loads(views: Mapping[str, ReplicaView], value: Callable[[Load], float]) -> Rows:
    """A figure of each of the first replicas by id, and of all others together."""
    ids = iter(views)
    rows: dict[tuple[str, ...], float] = {
        (id,): float(sum(value(offer.load) for offer in views[id].offers.values()))
        for id in islice(ids, MOST_LABELS - 1)
    }
    others = [value(offer.load) for id in ids for offer in views[id].offers.values()]
    if others:
        rows[(OTHER,)] = rows.get((OTHER,), 0.0) + sum(others)
    return rows
