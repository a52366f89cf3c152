"""A map that never changes: a new version shares nearly all that it holds with the old one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import attrs

Value = TypeVar("Value")

_LEAST_BUCKETS = 32
"""A power of two, as is every number of buckets."""


@attrs.frozen(eq=False)
class PersistentMap(Mapping[str, Value]):
    """An immutable map from text; `with_item` and `without` give another one.

    Keys lie in about √n buckets of about √n keys, so that a new version copies that much and not
    n. Iteration is in the order of the keys, the same in every process; it sorts them.
    """

    _buckets: tuple[dict[str, Value], ...] = ({},) * _LEAST_BUCKETS
    """Never written to once they are here."""
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
        buckets = self._buckets
        index = hash(key) & (len(buckets) - 1)
        bucket = buckets[index].copy()
        bucket[key] = value
        size = self._size + len(bucket) - len(buckets[index])
        if size > len(buckets) ** 2:
            return _spread({**dict(self.items()), key: value}, 2 * len(buckets))
        return PersistentMap((*buckets[:index], bucket, *buckets[index + 1 :]), size)

    def without(self, key: str) -> PersistentMap[Value]:
        """This map without `key`; itself where that is not there."""
        buckets = self._buckets
        index = hash(key) & (len(buckets) - 1)
        if key not in buckets[index]:
            return self
        bucket = buckets[index].copy()
        del bucket[key]
        return PersistentMap((*buckets[:index], bucket, *buckets[index + 1 :]), self._size - 1)


def _spread(items: dict[str, Value], buckets: int) -> PersistentMap[Value]:
    """A map of `items` in so many `buckets`."""
    spread: tuple[dict[str, Value], ...] = tuple({} for _ in range(buckets))
    for key, value in items.items():
        spread[hash(key) & (buckets - 1)][key] = value
    return PersistentMap(spread, len(items))
