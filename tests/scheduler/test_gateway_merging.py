"""What several replicas say of their models is said as one server would say it."""

from __future__ import annotations

from anyserve_protos import inference as pb
from anyserve_scheduler.gateway.merging import merged_index, merged_statistics, order_failure
from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import AnyServeError, Internal, NotFound

Model = pb.RepositoryIndexResponseModelIndex
STATES = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")

models = st.builds(
    Model,
    name=st.sampled_from(["decode", "embedding"]),
    version=st.sampled_from(["1", "2"]),
    state=st.sampled_from(STATES),
)
indexes = st.lists(
    st.builds(pb.RepositoryIndexResponse, models=st.lists(models, max_size=4)), max_size=4
)
durations = st.builds(pb.StatisticDuration, count=st.integers(0, 1000), ns=st.integers(0, 1 << 40))
statistics = st.lists(
    st.builds(
        pb.ModelStatistics,
        name=st.sampled_from(["decode", "embedding"]),
        version=st.just("1"),
        last_inference=st.integers(0, 1 << 40),
        inference_count=st.integers(0, 1000),
        inference_stats=st.none() | st.builds(pb.InferStatistics, success=durations),
    ),
    max_size=3,
)


@given(indexes, st.booleans())
def test_each_version_of_a_model_is_listed_once_in_its_best_state(
    said: list[pb.RepositoryIndexResponse], ready: bool
) -> None:
    best: dict[tuple[str, str], str] = {}
    for index in said:
        for model in index.models:
            key = model.name, model.version
            best[key] = min(best.get(key, "UNAVAILABLE"), model.state, key=STATES.index)
    merged = [
        ((each.name, each.version), each.state) for each in merged_index(said, ready=ready).models
    ]
    assert merged == sorted(item for item in best.items() if not ready or item[1] == "READY")


@given(st.lists(statistics, max_size=4))
def test_counts_and_times_are_summed_and_the_last_inference_is_the_latest(
    said: list[list[pb.ModelStatistics]],
) -> None:
    everything = [each for answer in said for each in answer]
    merged = merged_statistics(pb.ModelStatisticsResponse(model_stats=each) for each in said)
    assert [each.name for each in merged.model_stats] == sorted({each.name for each in everything})
    for each in merged.model_stats:
        same = [other for other in everything if other.name == each.name]
        assert each.inference_count == sum(other.inference_count for other in same)
        assert each.last_inference == max(other.last_inference for other in same)
        assert _success(each) == sum(_success(other) for other in same)


def _success(statistics: pb.ModelStatistics) -> int:
    stats = statistics.inference_stats
    return stats.success.ns if stats is not None and stats.success is not None else 0


def test_an_order_that_some_have_not_carried_out_names_them_and_the_others() -> None:
    failed: dict[str, AnyServeError] = {"b": Internal("no memory")}
    error = order_failure(failed, ["a", "c"], "loaded")
    assert (type(error), error.message) == (Internal, "replica b: no memory; loaded on a, c")
    error = order_failure({"a": NotFound("gone"), "b": NotFound("gone too")}, [], "loaded")
    assert (type(error), error.message) == (NotFound, "replica a: gone; replica b: gone too")
    error = order_failure({"a": NotFound("gone"), "b": Internal("no memory")}, [], "loaded")
    assert type(error) is Internal


def test_an_order_that_many_have_not_carried_out_is_told_in_bounded_length() -> None:
    ids = [f"replica-{number}" for number in range(1000)]
    failed: dict[str, AnyServeError] = dict.fromkeys(ids, Internal("no memory"))
    message = order_failure(failed, ids, "unloaded").message
    assert message.count("no memory") == 8
    assert message.count("992 more") == 2
