"""A map that never changes: a new version shares nearly all that it holds with the old one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import attrs

Value = TypeVar("Value")

_LEAST_BUCKETS = 32
"""A power of two, as is every number of buckets."""


def _empty() -> Sequence[dict[str, Value]]:
    return [{}] * _LEAST_BUCKETS


@attrs.frozen(eq=False, repr=False)
class PersistentMap(Mapping[str, Value]):
    """An immutable map from text; `with_item` and `without` give another one.

    Keys lie in about √n buckets of about √n keys, so that a new version copies that much and not
    n. Iteration is in the order of the keys, the same in every process; it sorts them.
    """

    _buckets: Sequence[dict[str, Value]] = attrs.field(factory=_empty)
    """Neither it nor a bucket is written to once it is here."""
    _size: int = 0

    def __getitem__(self, key: str) -> Value:
        return self._buckets[hash(key) & (len(self._buckets) - 1)][key]

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(key for bucket in self._buckets for key in bucket))

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self.items())!r})"

    def with_item(self, key: str, value: Value) -> PersistentMap[Value]:
        """This map with `value` under `key`, whether that was there or not."""
        buckets = list(self._buckets)
        index = hash(key) & (len(buckets) - 1)
        bucket = buckets[index].copy()
        bucket[key] = value
        size = self._size + len(bucket) - len(buckets[index])
        buckets[index] = bucket
        if size > len(buckets) ** 2:
            buckets = _spread(buckets)
        return PersistentMap(buckets, size)

    def without(self, key: str) -> PersistentMap[Value]:
        """This map without `key`; itself where that is not there."""
        index = hash(key) & (len(self._buckets) - 1)
        if key not in self._buckets[index]:
            return self
        buckets = list(self._buckets)
        buckets[index] = buckets[index].copy()
        del buckets[index][key]
        return PersistentMap(buckets, self._size - 1)


def _spread(buckets: Sequence[dict[str, Value]]) -> list[dict[str, Value]]:
    """What lies in `buckets`, in twice as many."""
    spread: list[dict[str, Value]] = [{} for _ in range(2 * len(buckets))]
    for bucket in buckets:
        for key, value in bucket.items():
            spread[hash(key) & (len(spread) - 1)][key] = value
    return spread
