"""The arena on real shared memory: what fits, what it costs, what stays behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from anyserve.errors import ResourceExhausted
from anyserve.objects import Arena, ArenaFull, Lease, Reader, new_prefix, segments_of
from anyserve.objects.arena import Buffer

PAGE = 4096


def test_an_idle_arena_has_no_segment() -> None:
    prefix = new_prefix()
    with Arena(prefix) as arena:
        assert segments_of(prefix) == []
        assert arena.statistics().size == 0
        assert arena.limit > 0


def test_buffers_of_every_kind_are_written_one_after_the_other() -> None:
    buffers: list[Buffer] = [
        b"bytes",
        bytearray(b"more"),
        memoryview(b""),
        np.arange(4, dtype=np.uint8).data,
        memoryview(b"a part of it")[2:6],
    ]
    with Arena(new_prefix()) as arena, Reader() as reader, arena.put(buffers) as lease:
        assert bytes(reader.view(lease.block)) == b"".join(buffers)
        assert lease.block.offset % 64 == 0


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros((3, 4), np.uint8).data,
        np.zeros(4, np.uint8).data[::2],
        np.zeros(4).data,
        np.array([b"x"], dtype=np.object_).data,
    ],
    ids=["a table", "each other byte", "numbers", "objects"],
)
def test_what_is_more_than_bytes_in_a_row_is_refused_before_anything_is_taken(
    buffer: memoryview,
) -> None:
    with Arena(new_prefix()) as arena:
        with pytest.raises(BufferError):
            arena.put([buffer])
        assert arena.statistics().leases == 0


def test_an_allocation_is_written_in_place() -> None:
    with Arena(new_prefix()) as arena, Reader() as reader, arena.allocate(32) as lease:
        np.frombuffer(lease.buffer, np.int64)[:] = [1, 2, 3, 4]
        assert np.frombuffer(reader.view(lease.block), np.int64).tolist() == [1, 2, 3, 4]


def test_memory_is_reserved_only_as_far_as_it_was_used() -> None:
    with Arena(new_prefix(), segment_size=1 << 20) as arena:
        arena.allocate(3 * PAGE).release()
        arena.allocate(2 * PAGE).release()
        statistics = arena.statistics()
        assert (statistics.size, statistics.reserved) == (1 << 20, 3 * PAGE)


def test_over_its_limit_the_arena_is_full_and_usable_again_after_a_release() -> None:
    with Arena(new_prefix(), limit=4 * PAGE, segment_size=2 * PAGE) as arena:
        leases = [arena.allocate(2 * PAGE), arena.allocate(PAGE)]
        with pytest.raises(ArenaFull, match=r"8192 bytes do not fit, 16384 of 16384"):
            arena.allocate(2 * PAGE)
        leases.append(arena.allocate(PAGE))
        leases.pop(0).release()
        leases.append(arena.allocate(2 * PAGE))
        for lease in leases:
            lease.release()
    assert issubclass(ArenaFull, ResourceExhausted)


def test_a_spare_segment_makes_way_for_a_large_allocation() -> None:
    with Arena(new_prefix(), limit=4 * PAGE, segment_size=2 * PAGE) as arena:
        arena.allocate(PAGE).release()
        with arena.allocate(4 * PAGE):
            assert arena.statistics().segments == 1


def test_emptied_segments_are_unlinked_except_for_one_of_ordinary_size() -> None:
    prefix = new_prefix()
    with Arena(prefix, limit=32 * PAGE, segment_size=2 * PAGE) as arena:
        leases = [arena.allocate(length * PAGE) for length in (2, 2, 8, 2)]
        assert len(segments_of(prefix)) == 4
        for lease in leases:
            lease.release()
        assert len(segments_of(prefix)) == 1
        assert arena.statistics().size == 2 * PAGE


def test_a_closed_arena_leaves_nothing_and_its_leases_can_still_be_released() -> None:
    prefix = new_prefix()
    arena = Arena(prefix)
    lease = arena.put([b"last words"])
    view = np.frombuffer(lease.buffer, np.uint8)
    arena.close()
    arena.close()
    assert segments_of(prefix) == []
    assert view.tobytes() == b"last words"
    lease.release()
    assert arena.statistics().leases == 0
    with pytest.raises(RuntimeError, match="closed"):
        arena.allocate(1)


def test_a_full_dev_shm_is_an_error_and_never_a_signal() -> None:
    code = """
from anyserve.objects.arena import Buffer
from anyserve.objects import Arena, ArenaFull, new_prefix
with Arena(new_prefix(), limit=64 << 20) as arena:
    leases = [arena.put([bytes(3 << 20)]) for _ in range(2)]
    try:
        arena.put([bytes(3 << 20)])
    except ArenaFull as error:
        print(error)
    leases.pop().release()
    leases.append(arena.put([b"x" * (3 << 20)]))
    print(arena.statistics().leases)
"""
    mount = 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    try:
        subprocess.run([*command, "mount -t tmpfs -o size=8m tmpfs /dev/shm"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a mount namespace, for a /dev/shm small enough to fill")
    done = subprocess.run(
        [*command, mount, sys.executable, code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "shared memory: no room for 3145728 bytes: No space left on device",
        "2",
    ]


class ArenaMachine(RuleBasedStateMachine):
    """Leases taken, kept, read and let go in any order; a plain dict is the model."""

    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(new_prefix(), limit=8 * PAGE, segment_size=2 * PAGE)
        self.reader = Reader(limit=2)
        self.content: dict[Lease, bytes] = {}
        self.holders: dict[Lease, int] = {}
        self.fill = 0

    @rule(target=leases, lengths=st.lists(st.integers(0, 3 * PAGE), max_size=3))
    def put(self, lengths: list[int]) -> Lease | MultipleResults[Lease]:
        self.fill = (self.fill + 1) % 256
        data = [bytes([self.fill]) * length for length in lengths]
        try:
            lease = self.arena.put(data)
        except ArenaFull:
            assert self.content or sum(lengths) > self.arena.limit
            return multiple()
        self.content[lease], self.holders[lease] = b"".join(data), 1
        return lease

    @rule(target=leases, lease=consumes(leases))
    def retain(self, lease: Lease) -> Lease:
        lease.retain()
        self.holders[lease] += 1
        return lease

    @rule(target=leases, lease=consumes(leases))
    def release(self, lease: Lease) -> Lease | MultipleResults[Lease]:
        lease.release()
        self.holders[lease] -= 1
        if self.holders[lease]:
            return lease
        del self.content[lease], self.holders[lease]
        return multiple()

    @invariant()
    def every_live_lease_reads_as_written(self) -> None:
        for lease, content in self.content.items():
            assert bytes(self.reader.view(lease.block)) == content

    @invariant()
    def the_numbers_agree(self) -> None:
        statistics = self.arena.statistics()
        assert statistics.leases == len(self.content)
        assert statistics.used <= statistics.size <= statistics.limit
        assert statistics.segments == len(segments_of(self.arena.prefix))
        assert self.reader.statistics().segments <= 2

    def teardown(self) -> None:
        for lease, holders in self.holders.items():
            for _ in range(holders):
                lease.release()
        statistics = self.arena.statistics()
        self.arena.close()
        self.reader.close()
        assert (statistics.leases, statistics.used) == (0, 0)
        assert statistics.segments <= 1
        assert segments_of(self.arena.prefix) == []


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
