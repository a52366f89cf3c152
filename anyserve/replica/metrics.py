"""What a replica counts, as families of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import trio
from anyserve_actors import Supervisor
from prometheus_client import Metric

from anyserve.histogram import Histogram
from anyserve.http.metrics.families import Rows, counter, gauge, histogram, single
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.objects.arena import Arena
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.pool import Pool
from anyserve.replica.scheduler_link import SchedulerLink
from anyserve.replica.statistics import Outcome
from anyserve.replica.timings import Timings

_CAPABILITY = ("capability",)


class ReplicaMetrics:
    """Reads what the replica counts. The names and their meaning are in `docs/metrics.md`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        arena: Arena,
        workers: Supervisor,
        link: Callable[[], SchedulerLink | None],
    ) -> None:
        """link: None for a replica without a scheduler."""
        self._dispatcher = dispatcher
        self._arena = arena
        self._workers = workers
        self._link = link
        self._labels: dict[str, str] = {}
        """Of the capabilities seen so far, which keep theirs."""

    def collect(self) -> Iterable[Metric]:
        """All of it, as it is now."""
        pools = self._pools()
        yield from self._requests(pools)
        yield from _timings(pools)
        yield from _loads(pools)
        yield from self._workers_and_memory()
        link = self._link()
        if link is not None:
            yield from _link(link)

    def _pools(self) -> Mapping[str, list[Pool]]:
        """The pools by label: one each, but for those that are `OTHER`."""
        found: dict[str, list[Pool]] = {}
        for pool in self._dispatcher.pools:
            name = pool.offer.name
            if name not in self._labels:
                self._labels[name] = name if len(self._labels) < MOST_LABELS - 1 else OTHER
            found.setdefault(self._labels[name], []).append(pool)
        return found

    def _requests(self, pools: Mapping[str, list[Pool]]) -> Iterable[Metric]:
        outcomes: Rows = {
            (label, outcome.value): sum(pool.statistics.outcomes[outcome] for pool in several)
            for label, several in pools.items()
            for outcome in Outcome
        }
        yield counter(
            "anyserve_requests",
            "Requests that have ended, by how",
            outcomes,
            ("capability", "outcome"),
        )
        yield counter(
            "anyserve_requests_turned_away",
            "Requests for what is not served here, or that came while the replica drains",
            single(self._dispatcher.turned_away),
        )
        yield gauge(
            "anyserve_in_flight_requests",
            "Requests that have come and not ended",
            single(self._dispatcher.in_flight),
        )
        yield counter(
            "anyserve_output_tokens",
            "Tokens given; a response is one where its handler says nothing else",
            _summed(_decoupled(pools), lambda pool: pool.given),
            _CAPABILITY,
        )
        yield counter(
            "anyserve_prompt_tokens",
            "Tokens of prompts, where the handler says how many one has",
            _summed(_decoupled(pools), lambda pool: pool.prompted),
            _CAPABILITY,
        )

    def _workers_and_memory(self) -> Iterable[Metric]:
        nodes = [
            node
            for child in self._workers.children("workers", trio.current_time())
            for node in child.walk()
            if not node.children
        ]
        restarts: dict[tuple[str, ...], float] = {}
        for index, node in enumerate(nodes):
            label = (node.name if index < MOST_LABELS - 1 else OTHER,)
            restarts[label] = restarts.get(label, 0) + node.restarts
        yield counter(
            "anyserve_worker_restarts",
            "Times that a worker was started again",
            restarts,
            ("worker",),
        )
        arena = self._arena.statistics()
        yield gauge(
            "anyserve_arena_used_bytes",
            "Shared memory that requests take in the replica's arena",
            single(arena.used),
        )
        yield gauge(
            "anyserve_arena_reserved_bytes",
            "Shared memory that the arena has taken from the system",
            single(arena.reserved),
        )
        yield gauge(
            "anyserve_arena_limit_bytes",
            "Shared memory that the arena may take",
            single(arena.limit),
        )


def _timings(pools: Mapping[str, list[Pool]]) -> Iterable[Metric]:
    def rows(part: Callable[[Timings], Histogram]) -> Mapping[str, list[Histogram]]:
        return {
            label: [part(pool.timings) for pool in several if pool.timings is not None]
            for label, several in pools.items()
        }

    yield histogram(
        "anyserve_queue_seconds",
        "Until a request was given to a worker",
        rows(lambda timings: timings.queue),
        "capability",
    )
    yield histogram(
        "anyserve_service_seconds",
        "That a request held its slot",
        rows(lambda timings: timings.service),
        "capability",
    )
    yield histogram(
        "anyserve_first_response_seconds",
        "From a request's arrival to its first response",
        rows(lambda timings: timings.first),
        "capability",
    )
    yield histogram(
        "anyserve_between_responses_seconds",
        "From one response of a request to the next",
        rows(lambda timings: timings.between),
        "capability",
    )


def _loads(pools: Mapping[str, list[Pool]]) -> Iterable[Metric]:
    yield gauge(
        "anyserve_ready",
        "Whether a request sent now would find a worker; of several capabilities, how many",
        _summed(pools, lambda pool: int(pool.serving)),
        _CAPABILITY,
    )
    yield gauge(
        "anyserve_running_requests",
        "Requests that hold a slot",
        _summed(pools, lambda pool: pool.running),
        _CAPABILITY,
    )
    yield gauge(
        "anyserve_queued_requests",
        "Requests that wait for a slot",
        _summed(pools, lambda pool: pool.waiting),
        _CAPABILITY,
    )
    yield gauge(
        "anyserve_slots",
        "Requests that may run at once",
        _summed(pools, lambda pool: sum(seat.slots for seat in pool.seats)),
        _CAPABILITY,
    )


def _link(link: SchedulerLink) -> Iterable[Metric]:
    yield gauge(
        "anyserve_link_up",
        "Whether the replica is registered with its scheduler",
        single(int(link.channel is not None)),
    )
    yield counter(
        "anyserve_link_reconnects",
        "Times that the replica has registered again",
        single(max(0, link.registrations - 1)),
    )
    yield counter(
        "anyserve_handed_back_requests",
        "Requests of the scheduler that were not served here",
        single(link.handed_back),
    )
    yield counter(
        "anyserve_relayed_requests",
        "Requests of clients that the scheduler was given instead",
        single(link.relayed),
    )


def _decoupled(pools: Mapping[str, list[Pool]]) -> Mapping[str, list[Pool]]:
    found = {
        label: [pool for pool in several if pool.offer.decoupled]
        for label, several in pools.items()
    }
    return {label: several for label, several in found.items() if several}


def _summed(pools: Mapping[str, list[Pool]], value: Callable[[Pool], float]) -> Rows:
    return {(label,): sum(map(value, several)) for label, several in pools.items()}
