"""Registering clients' regions: what is refused, and with which status."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.errors import (
    AlreadyExists,
    AnyServeError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from anyserve.objects import (
    Arena,
    RegionRef,
    Regions,
    RegionStatus,
    check_overlaps,
    new_prefix,
)


@pytest.fixture
def regions() -> Iterator[Regions]:
    with Regions() as regions:
        yield regions


def test_regions_are_listed_as_registered_until_unregistered(
    regions: Regions, client_file: Callable[[int], Path]
) -> None:
    path = client_file(100)
    regions.register("in", f"/{path.name}", 0, 100)
    regions.register("out", path.name, 40, 60)
    expected = [
        RegionStatus("in", f"/{path.name}", 0, 100),
        RegionStatus("out", path.name, 40, 60),
    ]
    assert regions.status() == expected
    assert regions.status("out") == expected[1:]
    regions.unregister("in")
    regions.unregister("in")
    assert regions.status() == expected[1:]
    regions.unregister_all()
    assert regions.status() == []


def test_unknown_regions_are_not_found(regions: Regions) -> None:
    with pytest.raises(NotFound, match="'nowhere'"):
        regions.status("nowhere")
    with pytest.raises(NotFound, match="'nowhere'"):
        regions.find("nowhere")


def test_a_name_in_use_already_exists_and_keeps_its_region(
    regions: Regions, client_file: Callable[[int], Path]
) -> None:
    path = client_file(100)
    regions.register("in", path.name, 0, 100)
    with pytest.raises(AlreadyExists, match="'in'"):
        regions.register("in", path.name, 0, 50)
    assert regions.find("in").byte_size == 100


@pytest.mark.parametrize(
    "key, fault",
    [
        ("", "empty"),
        ("///", "empty"),
        ("/", "empty"),
        ("..", "not the name"),
        ("/..", "not the name"),
        (".", "not the name"),
        ("../etc/passwd", "not the name"),
        ("a/b", "not the name"),
        ("a\0b", "not the name"),
        ("k" * 256, "over 255 bytes"),
        ("ä" * 128, "over 255 bytes"),
        ("anyserve-1-1-0-0", "reserved"),
        ("/anyserve-x", "reserved"),
        ("sem.lock", "reserved"),
    ],
)
def test_keys_that_cannot_be_one_are_invalid(regions: Regions, key: str, fault: str) -> None:
    with pytest.raises(InvalidArgument, match=f"'in'.*{fault}"):
        regions.register("in", key, 0, 1)


def test_our_own_segments_are_no_clients_region(regions: Regions) -> None:
    with Arena(new_prefix()) as arena:
        segment = arena.put([b"secret"]).block.segment
        with pytest.raises(InvalidArgument, match="reserved"):
            regions.register("in", segment, 0, 6)


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_names_that_cannot_be_one_are_invalid(
    regions: Regions, client_file: Callable[[int], Path], name: str
) -> None:
    with pytest.raises(InvalidArgument, match="the name is"):
        regions.register(name, client_file(1).name, 0, 1)


@pytest.mark.parametrize(
    "offset, byte_size",
    [(0, 101), (1, 100), (100, 1), (0, 0), (-1, 10), (0, -1), (2**64 - 1, 2), (1, 2**64 - 1)],
)
def test_sizes_that_the_object_does_not_have_are_internal(
    regions: Regions, client_file: Callable[[int], Path], offset: int, byte_size: int
) -> None:
    with pytest.raises(Internal, match="of 100 bytes"):
        regions.register("in", client_file(100).name, offset, byte_size)


def test_keys_without_a_shared_memory_object_are_internal(regions: Regions) -> None:
    stem = f"client-{os.getpid()}"
    shm = Path("/dev/shm")
    (shm / f"{stem}-link").symlink_to("/etc/passwd")
    (shm / f"{stem}-folder").mkdir()
    os.mkfifo(shm / f"{stem}-fifo")
    try:
        for key in (f"{stem}-missing", f"{stem}-link", f"{stem}-folder", f"{stem}-fifo"):
            with pytest.raises(Internal, match=f"'in': key '{key}'"):
                regions.register("in", key, 0, 1)
    finally:
        (shm / f"{stem}-link").unlink()
        (shm / f"{stem}-folder").rmdir()
        (shm / f"{stem}-fifo").unlink()
    assert regions.status() == []


def test_registrations_are_bounded(client_file: Callable[[int], Path]) -> None:
    path = client_file(10)
    with Regions(limit=2) as regions:
        regions.register("a", path.name, 0, 10)
        regions.register("b", path.name, 0, 10)
        with pytest.raises(ResourceExhausted, match="2 shared memory regions"):
            regions.register("c", path.name, 0, 10)


@given(
    key=st.text().map("client-none-".__add__),
    offset=st.integers(0, 2**64 - 1),
    byte_size=st.integers(0, 2**64 - 1),
)
def test_any_registration_of_what_is_not_there_is_refused_in_words(
    key: str, offset: int, byte_size: int
) -> None:
    with Regions() as regions, pytest.raises(AnyServeError, match="'in'"):
        regions.register("in", key, offset, byte_size)


REGION = RegionRef("out", "key", device=1, inode=2, offset=100, byte_size=50)


def test_a_part_is_counted_from_the_regions_start() -> None:
    part = REGION.part(10, 40)
    assert (part.offset, part.byte_size) == (110, 40)
    assert part.part(40, 0).offset == 150


@pytest.mark.parametrize("offset, byte_size", [(0, 51), (50, 1), (-1, 1), (0, -1), (2**64, 1)])
def test_a_part_outside_its_region_is_invalid(offset: int, byte_size: int) -> None:
    with pytest.raises(InvalidArgument, match="'out'"):
        REGION.part(offset, byte_size)


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(0, 1), st.sampled_from("ab")),
        max_size=5,
    )
)
def test_outputs_overlap_when_they_share_a_byte_of_a_file(
    outputs: list[tuple[int, int, int, str]],
) -> None:
    refs = [RegionRef(name, name, 1, inode, start, size) for start, size, inode, name in outputs]
    places = [
        (ref.inode, at) for ref in refs for at in range(ref.offset, ref.offset + ref.byte_size)
    ]
    if len(places) == len(set(places)):
        check_overlaps(refs)
    else:
        with pytest.raises(InvalidArgument, match="overlap"):
            check_overlaps(refs)
