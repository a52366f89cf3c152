"""Segments without a resource tracker, on each Python there is; sweeping after dead replicas."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anyserve.objects import segments
from anyserve.objects.segments import Segment, new_prefix, segments_of, sweep, unlink_all

LOAD = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("segments", {segments.__file__!r})
segments = importlib.util.module_from_spec(spec)
spec.loader.exec_module(segments)

def no_children():
    with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
        return file.read() == ""
"""


def interpreter(version: str) -> str:
    """A Python of that version, from where people have them; skips the test where there is none."""
    if version == f"3.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = [*map(str, pyenv.glob(f"{version}.*/bin/python{version}"))]
    if (found := shutil.which(f"python{version}")) is not None:
        places.append(found)
    for place in places:
        done = subprocess.run([place, "--version"], capture_output=True, check=False)
        if done.returncode == 0:
            return place
    pytest.skip(f"no Python {version} here")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_attaching_and_making_need_no_tracker_process_and_unlink_nothing(
    version: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    python = interpreter(version)
    prefix = new_prefix()
    ours = Segment(f"{prefix}-0", 4096)
    ours.reserve(5)
    ours.view(0, 5)[:] = b"hello"
    reader = child(
        LOAD + "prefix = sys.argv[1]\n"
        "print(segments.attach(f'{prefix}-0')[:5].decode())\n"
        "made = segments.Segment(f'{prefix}-1', 4096)\n"
        "made.reserve(3); made.view(0, 3)[:] = b'bye'\n"
        "gone = segments.Segment(f'{prefix}-2', 4096); gone.unlink(); gone.close()\n"
        "print(no_children())",
        prefix,
        python=python,
    )
    assert reader.communicate() == ("hello\nTrue\n", "")
    assert reader.returncode == 0
    assert segments_of(prefix) == [f"{prefix}-0", f"{prefix}-1"]
    assert segments.attach(f"{prefix}-1")[:3] == b"bye"
    assert unlink_all(prefix) == [f"{prefix}-0", f"{prefix}-1"]
    ours.unlink()
    ours.close()


def test_a_mapping_to_read_cannot_be_written() -> None:
    segment = Segment(f"{new_prefix()}-0", 4096)
    mapped = segments.attach(segment.name)
    with pytest.raises(TypeError):
        mapped[0] = 1
    mapped.close()
    segment.unlink()
    segment.close()


def test_a_name_that_is_taken_is_an_error_and_stays_its_owners() -> None:
    segment = Segment(f"{new_prefix()}-0", 4096)
    with pytest.raises(FileExistsError):
        Segment(segment.name, 4096)
    assert segments.exists(segment.name)
    segment.unlink()
    segment.close()


def test_a_segment_larger_than_a_file_can_be_leaves_nothing() -> None:
    prefix = new_prefix()
    with pytest.raises(OSError):
        Segment(f"{prefix}-0", (1 << 63) - 1)
    assert segments_of(prefix) == []


def test_prefixes_are_unique_and_do_not_contain_each_other() -> None:
    prefixes = [new_prefix() for _ in range(12)]
    assert len(set(prefixes)) == 12
    made = [Segment(f"{prefix}-0", 64) for prefix in prefixes]
    assert all(segments_of(prefix) == [f"{prefix}-0"] for prefix in prefixes)
    assert all(unlink_all(prefix) == [f"{prefix}-0"] for prefix in prefixes)
    for segment in made:
        segment.close()


REPLICA = (
    LOAD
    + """
mine, its_workers = segments.new_prefix(), segments.new_prefix()
kept = [segments.Segment(f"{prefix}-0", 4096) for prefix in (mine, its_workers)]
print(*(segment.name for segment in kept), flush=True)
sys.stdin.read()
for segment in kept:
    segment.unlink()
"""
)


def test_a_sweep_removes_what_a_killed_replica_left_and_nothing_of_a_live_one(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    dead, live = child(REPLICA), child(REPLICA)
    assert dead.stdout is not None
    assert live.stdout is not None
    left, kept = dead.stdout.readline().split(), live.stdout.readline().split()
    own = Segment(f"{new_prefix()}-0", 64)
    assert not set(sweep()) & {*left, *kept, own.name}
    dead.kill()
    dead.wait()
    removed = sweep()
    assert set(left) <= set(removed)
    assert not any(map(segments.exists, left))
    assert not set(removed) & {*kept, own.name}
    assert all(map(segments.exists, [*kept, own.name]))
    assert live.communicate("")[1] == ""
    assert not any(map(segments.exists, kept))
    own.unlink()
    own.close()


def test_a_pid_that_came_back_does_not_keep_its_predecessors_segments() -> None:
    # Our own pid with another start time, and nobody's lock: what a predecessor left.
    name = f"anyserve-{os.getpid()}-1-0-0"
    Path(segments.DIRECTORY, name).write_bytes(b"left")
    assert name in sweep()
    assert not segments.exists(name)


def test_a_segment_in_use_is_kept_though_its_pid_says_nothing_here() -> None:
    # As seen from another container: the pid looks dead, the lock tells otherwise.
    segment = Segment(f"anyserve-{os.getpid()}-2-0-0", 64)
    assert segment.name not in sweep()
    segment.close()
    assert segment.name in sweep()


def test_a_sweep_leaves_files_alone_that_only_look_like_ours() -> None:
    path = Path(segments.DIRECTORY, f"client-{os.getpid()}-anyserve-1-1-0-0")
    path.touch()
    sweep()
    assert path.exists()
    path.unlink()
