"""Reading and writing clients' regions while their clients misbehave."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest

from anyserve.errors import Internal, InvalidArgument
from anyserve.objects import RegionFiles, RegionRef, Regions


@pytest.fixture
def regions() -> Iterator[Regions]:
    with Regions() as regions:
        yield regions


@pytest.fixture
def files() -> Iterator[RegionFiles]:
    with RegionFiles() as files:
        yield files


@attrs.frozen
class Registered:
    path: Path
    ref: RegionRef


@pytest.fixture
def region(regions: Regions, client_file: Callable[[int], Path]) -> Registered:
    """The client's bytes 16 to 96 of a file of 128."""
    path = client_file(128)
    path.write_bytes(bytes(range(128)))
    regions.register("io", path.name, 16, 80)
    return Registered(path, regions.find("io"))


def test_reading_gives_a_copy_of_the_range(region: Registered, files: RegionFiles) -> None:
    read = files.read(region.ref.part(4, 8))
    assert read == bytes(range(20, 28))
    region.path.write_bytes(bytes(128))
    assert read == bytes(range(20, 28))
    assert files.read(region.ref.part(80, 0)) == b""


def test_writing_changes_only_the_range(region: Registered, files: RegionFiles) -> None:
    files.write(region.ref.part(4, 8), np.array([-1], np.int64).tobytes())
    files.write(region.ref.part(76, 4), b"\xee")
    expected = bytearray(range(128))
    expected[20:28] = b"\xff" * 8
    expected[92] = 0xEE
    assert region.path.read_bytes() == expected


def test_an_output_larger_than_what_is_given_for_it_is_internal(
    region: Registered, files: RegionFiles
) -> None:
    with pytest.raises(Internal, match=r"'io'.*9 bytes does not fit the 8 bytes"):
        files.write(region.ref.part(0, 8), bytes(9))
    assert region.path.read_bytes() == bytes(range(128))


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_region_that_was_shrunk_is_an_error_and_not_grown_again(
    region: Registered, files: RegionFiles, opened_before: bool
) -> None:
    if opened_before:
        files.read(region.ref)
    os.truncate(region.path, 50)
    assert files.read(region.ref.part(0, 34)) == bytes(range(16, 50))
    for use in (lambda ref: files.read(ref), lambda ref: files.write(ref, b"x")):
        with pytest.raises(InvalidArgument, match=r"'io'.*ends at 50 bytes, 96 are needed"):
            use(region.ref)
    assert region.path.stat().st_size == 50


def test_a_region_truncated_in_the_middle_of_a_read_is_an_error(
    region: Registered, files: RegionFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread

    def truncate_and_read(fd: int, length: int, offset: int) -> bytes:
        os.truncate(region.path, 40)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", truncate_and_read)
    with pytest.raises(InvalidArgument, match="ends at 40 bytes"):
        files.read(region.ref)


def test_a_region_that_comes_in_parts_is_read_to_its_end(
    region: Registered, files: RegionFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: real(fd, min(length, 10), at))
    assert files.read(region.ref.part(1, 25)) == bytes(range(17, 42))


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_region_that_was_unlinked_is_an_error(
    region: Registered, files: RegionFiles, opened_before: bool
) -> None:
    if opened_before:
        files.read(region.ref)
    region.path.unlink()
    for use in (lambda ref: files.read(ref), lambda ref: files.write(ref, b"x")):
        with pytest.raises(InvalidArgument, match=r"'io'.*was unlinked"):
            use(region.ref)


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_region_that_was_replaced_is_an_error_until_registered_again(
    region: Registered, regions: Regions, files: RegionFiles, opened_before: bool
) -> None:
    if opened_before:
        files.read(region.ref)
    region.path.unlink()
    region.path.write_bytes(b"N" * 128)
    with pytest.raises(InvalidArgument, match=r"'io'.*was replaced"):
        files.write(region.ref, b"x")
    assert region.path.read_bytes() == b"N" * 128
    regions.unregister("io")
    regions.register("io", region.path.name, 0, 128)
    assert files.read(regions.find("io").part(0, 2)) == b"NN"


def test_a_region_unregistered_while_in_use_still_serves_the_request_that_has_it(
    region: Registered, regions: Regions, files: RegionFiles
) -> None:
    regions.unregister("io")
    files.write(region.ref, b"done")
    assert files.read(region.ref.part(0, 4)) == b"done"


def test_open_files_are_bounded(regions: Regions, client_file: Callable[[int], Path]) -> None:
    for n in range(4):
        path = client_file(1)
        path.write_bytes(bytes([n]))
        regions.register(str(n), path.name, 0, 1)
    refs = [regions.find(str(n)) for n in range(4)]
    before = len(os.listdir("/proc/self/fd"))
    with RegionFiles(limit=2) as files:
        for _ in range(2):
            assert [files.read(ref)[0] for ref in refs] == [0, 1, 2, 3]
        assert len(os.listdir("/proc/self/fd")) == before + 2


def test_tritonclients_own_regions_are_read_and_written(
    regions: Regions, files: RegionFiles, child: Callable[..., subprocess.Popen[str]]
) -> None:
    client = child(
        "import sys, numpy as np, tritonclient.utils.shared_memory as shm\n"
        "region = shm.create_shared_memory_region('io', sys.argv[1], 64)\n"
        "shm.set_shared_memory_region(region, [np.arange(4, dtype=np.int64)])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(shm.get_contents_as_numpy(region, np.int64, [4], 32).tolist())\n"
        "shm.destroy_shared_memory_region(region)",
        key := f"/client-{os.getpid()}-triton",
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n", client.stderr
    regions.register("io", key, 0, 64)
    ref = regions.find("io")
    numbers = np.frombuffer(files.read(ref.part(0, 32)), np.int64)
    files.write(ref.part(32, 32), (numbers * 10).tobytes())
    output, errors = client.communicate("go\n")
    assert (output, errors) == ("[0, 10, 20, 30]\n", "")


def test_a_client_that_truncates_under_load_gets_errors_and_no_signal(
    regions: Regions,
    client_file: Callable[[int], Path],
    files: RegionFiles,
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    path = client_file(1 << 20)
    regions.register("io", path.name, 0, 1 << 20)
    ref = regions.find("io")
    client = child(
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    os.truncate(sys.argv[1], 0); os.truncate(sys.argv[1], 1 << 20)",
        path,
    )
    assert client.stdout is not None
    client.stdout.readline()
    refused = 0
    for _ in range(2000):
        try:
            assert len(files.read(ref)) == 1 << 20
            files.write(ref, b"x" * 4096)
        except InvalidArgument:
            refused += 1
        if refused == 20:
            break
    assert refused == 20
