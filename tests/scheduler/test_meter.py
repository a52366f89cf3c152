"""Requests at the front door, counted by what became of them."""

from __future__ import annotations

import pytest
from anyserve_scheduler.gateway.meter import Meter, Passage, outcome_of
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig

from anyserve.errors import AnyServeError, DeadlineExceeded, Internal, NotFound
from anyserve.http.metrics.labels import MOST_LABELS, OTHER
from anyserve.replica.statistics import Outcome


def test_any_number_of_capabilities_is_measured_under_a_bounded_number_of_names() -> None:
    meter = Meter()
    for number in range(100_000):
        passage = Passage(meter, 0.0)
        passage.sent(f"c{number}")
        passage.ended(Outcome.ANSWERED, 1.0)
    assert len(meter.measures) == MOST_LABELS
    counts = {name: each.outcomes[Outcome.ANSWERED] for name, each in meter.measures.items()}
    assert counts["c0"] == 1
    assert counts[OTHER] == 100_000 - (MOST_LABELS - 1)


def test_a_request_that_went_nowhere_counts_for_no_capability() -> None:
    meter = Meter()
    Passage(meter, 0.0).ended(Outcome.REFUSED, 1.0)
    assert list(meter.measures) == [OTHER]
    assert meter.measures[OTHER].outcomes[Outcome.REFUSED] == 1
    assert sum(meter.measures[OTHER].whole.counts) == 0


def test_the_answers_of_a_request_are_timed_from_one_to_the_next() -> None:
    meter = Meter()
    passage = Passage(meter, 1.0)
    passage.sent("decode")
    passage.answered(1, 1.5)
    passage.answered(3, 1.75)
    passage.ended(Outcome.ANSWERED, 2.0)
    measures = meter.of("decode")
    assert (sum(measures.first.counts), measures.first.sum) == (1, 0.5)
    assert (sum(measures.between.counts), measures.between.sum) == (3, 0.25)
    assert (sum(measures.whole.counts), measures.whole.sum) == (1, 1.0)


@pytest.mark.parametrize(
    ("error", "at_replica", "outcome"),
    [
        (None, True, Outcome.ANSWERED),
        (DeadlineExceeded("late"), False, Outcome.EXPIRED),
        (Internal("broken"), True, Outcome.FAILED),
        (NotFound("nobody"), False, Outcome.REFUSED),
    ],
)
def test_every_end_is_one_outcome(
    error: AnyServeError | None, at_replica: bool, outcome: Outcome
) -> None:
    assert outcome_of(error, at_replica) is outcome


def test_nothing_is_measured_where_nobody_asks() -> None:
    assert Scheduler(SchedulerConfig()).ways.meter is None
