"""Counting holders, and holders that end with all they have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anyserve.objects import Arena, Lease, LeaseError, LeaseSet, new_prefix


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(new_prefix()) as arena:
        yield arena


def test_bytes_are_free_when_the_last_holder_lets_go(arena: Arena) -> None:
    lease = arena.put([b"kept"])
    assert lease.retain() is lease
    lease.release()
    assert (lease.holders, arena.statistics().leases) == (1, 1)
    assert bytes(lease.buffer) == b"kept"
    lease.release()
    assert (lease.holders, arena.statistics().leases, arena.statistics().used) == (0, 0, 0)


def test_a_lease_that_ended_refuses_every_use_and_frees_nothing_twice(arena: Arena) -> None:
    lease = arena.put([b"first"])
    lease.release()
    successor = arena.put([b"other"])
    assert successor.block.offset == lease.block.offset
    with pytest.raises(LeaseError):
        lease.release()
    with pytest.raises(LeaseError):
        lease.retain()
    with pytest.raises(LeaseError):
        _ = lease.buffer
    assert bytes(successor.buffer) == b"other"
    assert arena.statistics().leases == 1


def test_a_with_block_releases_also_when_it_raises(arena: Arena) -> None:
    lease = arena.put([b"x"])
    with pytest.raises(KeyError), lease:
        raise KeyError
    assert (lease.holders, arena.statistics().leases) == (0, 0)


def test_a_holder_ends_with_all_it_has_and_others_keep_theirs(arena: Arena) -> None:
    shared = arena.put([b"shared"])
    worker = LeaseSet()
    worker.add(shared.retain())
    worker.add(arena.put([b"its own"]))
    returned = worker.add(arena.put([b"given back"]))
    worker.release(returned)
    assert len(worker) == 2
    assert worker.release_all() == 2
    assert worker.release_all() == 0
    assert arena.statistics().leases == 1
    assert bytes(shared.buffer) == b"shared"


def test_a_holder_cannot_release_what_it_does_not_have(arena: Arena) -> None:
    with LeaseSet() as holder:
        block = holder.add(arena.put([b"x"]))
        holder.release(block)
        with pytest.raises(LeaseError):
            holder.release(block)
        lease: Lease = arena.put([b"y"])
        holder.add(lease)
        with pytest.raises(LeaseError):
            holder.add(lease)
    assert arena.statistics().leases == 0
