"""Reading another process's blocks: bounds, lifetimes, and owners that die."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from anyserve.errors import Internal, Unavailable
from anyserve.objects import Arena, Block, Reader, new_prefix, segments_of, unlink_all


def test_views_are_read_only_all_the_way_down() -> None:
    with Arena(new_prefix()) as arena, Reader() as reader, arena.put([bytes(64)]) as lease:
        view = reader.view(lease.block)
        assert view.readonly
        array = np.frombuffer(view, np.float32)
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        # Nothing was copied: what the owner writes is seen.
        lease.buffer[:4] = np.float32(2.5).tobytes()
        assert array[0] == 2.5


def test_blocks_outside_their_segment_and_foreign_names_are_refused() -> None:
    with Arena(new_prefix(), segment_size=4096) as arena, Reader() as reader:
        with arena.put([b"x"]) as lease:
            name = lease.block.segment
            for offset, length in ((-1, 1), (0, -1), (4096, 1), (1, 4096), (1 << 70, 1)):
                with pytest.raises(Internal, match="outside"):
                    reader.view(Block(name, offset, length))
            assert bytes(reader.view(Block(name, 4096, 0))) == b""
        for name in ("", "../../etc/passwd", "somebody-elses"):
            with pytest.raises(Internal, match="not the name"):
                reader.view(Block(name, 0, 1))


def test_a_segment_that_is_gone_is_unavailable() -> None:
    with Reader() as reader, pytest.raises(Unavailable, match="may have ended"):
        reader.view(Block(f"{new_prefix()}-0", 0, 1))


def test_at_most_limit_segments_stay_mapped_and_evicted_views_stay_good() -> None:
    with Arena(new_prefix(), segment_size=4096) as arena, Reader(limit=2) as reader:
        leases = [arena.put([bytes([n]) * 4096]) for n in range(4)]
        views = [reader.view(lease.block) for lease in leases]
        assert reader.statistics().segments == 2
        assert [view[0] for view in views] == [0, 1, 2, 3]
        assert [reader.view(lease.block)[4095] for lease in leases] == [0, 1, 2, 3]


def test_what_its_owner_unlinked_is_let_go_and_views_stay_good() -> None:
    with Arena(new_prefix(), segment_size=4096) as arena, Reader() as reader:
        small, large = arena.put([b"small"]), arena.put([b"L" * 8192])
        reader.view(small.block)
        view = reader.view(large.block)
        assert reader.prune() == 0
        large.release()
        assert reader.prune() == 1
        assert reader.statistics().size == 4096
        assert view[8191] == ord("L")


def test_the_reply_of_a_worker_killed_with_sigkill_is_readable_until_let_go(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    prefix = new_prefix()
    worker = child(
        "import sys; from anyserve.objects import Arena\n"
        "lease = Arena(sys.argv[1]).put([b'reply'])\n"
        "print(*map(str, (lease.block.segment, lease.block.offset, lease.block.length)))\n"
        "sys.stdout.flush(); sys.stdin.read()",
        prefix,
    )
    assert worker.stdout is not None
    segment, offset, length = worker.stdout.readline().split()
    with Reader() as reader:
        worker.kill()
        worker.wait()
        view = reader.view(Block(segment, int(offset), int(length)))
        assert unlink_all(prefix) == [segment]
        assert segments_of(prefix) == []
        assert reader.prune() == 1
        assert bytes(view) == b"reply"


def test_a_process_that_ends_with_views_and_leases_alive_says_nothing() -> None:
    code = """
import numpy as np
from anyserve.objects import Arena, Reader, new_prefix
arena, reader = Arena(new_prefix()), Reader()
lease = arena.put([b"12345678"])
written, seen = (np.frombuffer(v, np.int64) for v in (lease.buffer, reader.view(lease.block)))
arena.close(); reader.close()
assert written[0] == seen[0]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
