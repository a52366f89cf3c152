"""Families of metrics, made of what is counted elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from anyserve.histogram import BOUNDS, Histogram

Rows: TypeAlias = Mapping[tuple[str, ...], float]
"""Values by those of the labels."""

_NAMES = [str(bound) for bound in BOUNDS] + ["+Inf"]


def single(value: float) -> Rows:
    """The only row of a family without labels."""
    return {(): value}


def counter(name: str, meaning: str, rows: Rows, labels: Sequence[str] = ()) -> CounterMetricFamily:
    """What only grows; `name` is without `_total`."""
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, value in rows.items():
        family.add_metric(values, value)
    return family


def gauge(name: str, meaning: str, rows: Rows, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    """What is so now."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for values, value in rows.items():
        family.add_metric(values, value)
    return family


def histogram(
    name: str, meaning: str, rows: Mapping[str, Iterable[Histogram]], label: str
) -> HistogramMetricFamily:
    """Times; those of one row are added up."""
    family = HistogramMetricFamily(name, meaning, labels=[label])
    for value, parts in rows.items():
        several = list(parts)
        counts = map(sum, zip(*(part.counts for part in several), strict=True))
        buckets = list(zip(_NAMES, itertools.accumulate(counts), strict=True))
        family.add_metric([value], buckets, sum(part.sum for part in several))
    return family
