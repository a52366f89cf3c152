"""Tensors of 4 MiB, in the gRPC message and in the client's shared memory, beside grpc.aio."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks import h2load, servers
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load
from benchmarks.messages import (
    REGISTER,
    call,
    check_echo,
    echo_request,
    register_request,
    shared_echo_request,
)
from benchmarks.prepared import INFER
from benchmarks.rounds import Case, measure, print_table
from benchmarks.servers import Server

FLOATS = 1 << 20
"""A tensor of 4 MiB."""
CALLS = {1: 60, 4: 120}
"""Calls of a round, by how many are in flight."""
SHARED_CALLS = {1: 500, 4: 1000}


def run(rounds: int) -> None:
    """Print the table; a shared-memory call is compared with the same tensor by grpc.aio."""
    h2load.check_installed()
    inline = echo_request(FLOATS)
    with servers.echoes() as running, _regions(running[0]) as shared:
        ours = running[0]
        sizes = {server: check_echo(server.address, inline) for server in running}
        cases = [
            Case(_words("by gRPC", in_flight), server, Load(inline, in_flight, calls), size)
            for in_flight, calls in CALLS.items()
            for server, size in sizes.items()
        ]
        size = len(call(ours.address, INFER, shared))
        cases += [
            Case(
                _words("by shared memory", in_flight),
                ours,
                Load(shared, in_flight, calls),
                size,
                _words("by gRPC", in_flight),
            )
            for in_flight, calls in SHARED_CALLS.items()
        ]
        print_table(measure(cases, rounds), baseline=running[-1])


def _words(way: str, in_flight: int) -> str:
    return f"{way}, {in_flight} in flight"


@contextmanager
def _regions(server: Server) -> Iterator[bytes]:
    """Regions for the tensor and its echo, registered: the request that names them."""
    size = FLOATS * 4
    source, target = (f"benchmark-{os.getpid()}-{way}" for way in ("in", "out"))
    paths = [Path("/dev/shm", name) for name in (source, target)]
    tensor = np.random.default_rng(7).random(FLOATS, np.float32).tobytes()
    try:
        for name, path, content in zip((source, target), paths, (tensor, bytes(size)), strict=True):
            path.write_bytes(content)
            call(server.address, REGISTER, register_request(name, name, size))
        request = shared_echo_request(FLOATS, source, target)
        call(server.address, INFER, request)
        if paths[1].read_bytes() != tensor:
            raise CannotMeasure("the replica does not echo the tensor in shared memory")
        yield request
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
