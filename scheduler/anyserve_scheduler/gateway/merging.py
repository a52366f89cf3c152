"""What replicas say of their models, as one server would say it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from anyserve_protos import inference as pb

from anyserve.errors import AnyServeError, Status, from_status

_STATES = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")
"""Of a model in the repository index; the first that it has on some replica counts."""
_NAMED = 8
"""Replicas that an error names, of those that have failed and of the others."""
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


def merged_index(
    indexes: Iterable[pb.RepositoryIndexResponse], *, ready: bool
) -> pb.RepositoryIndexResponse:
    """All models, each version once, by name. ready: only those that some replica serves."""
    found: dict[tuple[str, str], pb.RepositoryIndexResponseModelIndex] = {}
    for index in indexes:
        for model in index.models:
            key = model.name, model.version
            known = found.get(key)
            if known is None or _rank(model.state) < _rank(known.state):
                found[key] = model
    return pb.RepositoryIndexResponse(
        models=[found[key] for key in sorted(found) if not ready or found[key].state == "READY"]
    )


def _rank(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)


def merged_statistics(
    answers: Iterable[pb.ModelStatisticsResponse],
) -> pb.ModelStatisticsResponse:
    """The sums over all replicas, for each version of each model, by name."""
    found: dict[tuple[str, str], pb.ModelStatistics] = {}
    for answer in answers:
        for each in answer.model_stats:
            key = each.name, each.version
            known = found.get(key)
            found[key] = each if known is None else _sum(known, each)
    return pb.ModelStatisticsResponse(model_stats=[found[key] for key in sorted(found)])


def _sum(a: pb.ModelStatistics, b: pb.ModelStatistics) -> pb.ModelStatistics:
    one = a.inference_stats or pb.InferStatistics()
    other = b.inference_stats or pb.InferStatistics()
    durations = {
        name: _sum_durations(getattr(one, name), getattr(other, name)) for name in _DURATIONS
    }
    return pb.ModelStatistics(
        name=a.name,
        version=a.version,
        last_inference=max(a.last_inference, b.last_inference),
        inference_count=a.inference_count + b.inference_count,
        execution_count=a.execution_count + b.execution_count,
        inference_stats=pb.InferStatistics(**durations),
    )


def _sum_durations(
    a: pb.StatisticDuration | None, b: pb.StatisticDuration | None
) -> pb.StatisticDuration:
    known = [each for each in (a, b) if each is not None]
    return pb.StatisticDuration(
        count=sum(each.count for each in known), ns=sum(each.ns for each in known)
    )


def order_failure(
    failed: Mapping[str, AnyServeError], others: Sequence[str], done: str
) -> AnyServeError:
    """What a client hears of an order that some replicas have not carried out.

    failed: what they said, by their ids. others: those that have `done` it, which is a word. The
    status is that of all who failed, or INTERNAL where they differ.
    """
    statuses = {error.status for error in failed.values()}
    status = statuses.pop() if len(statuses) == 1 else Status.INTERNAL
    words = [f"replica {id}: {error.message}" for id, error in failed.items()]
    text = "; ".join([*words[:_NAMED], *_rest(words)])
    if others:
        text += f"; {done} on {', '.join([*others[:_NAMED], *_rest(others)])}"
    return from_status(status, text)


def _rest(all: Sequence[str]) -> list[str]:
    return [f"{len(all) - _NAMED} more"] if len(all) > _NAMED else []
