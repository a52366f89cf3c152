"""What the tests of faults need: requests in one line, other processes watched, the actor tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from anyserve_protos.anyserve import v1 as admin_pb
from tritonclient.grpc import service_pb2

from anyserve.admin.socket_path import socket_path
from anyserve.client import Client, encode_request, open_client
from anyserve.replica.group import AppSpec
from anyserve.replica.replica import Replica, ReplicaConfig
from anyserve.replica.repository import Plan
from anyserve.replica.worker_link import Patience

pb: Any = service_pb2
T = TypeVar("T")
ROOT = Path(__file__).parents[3]
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Any]:
    """Makes ModelInferRequests."""

    def make(capability: str, timeout_us: int = 0, **inputs: Any) -> Any:
        """One for `capability`; timeout_us: its `timeout` parameter, where over 0."""
        values = {"timeout": timeout_us} if timeout_us else {}
        return pb.ModelInferRequest.FromString(encode_request(capability, inputs, values))

    return make


@pytest.fixture(scope="session")
def tree_of() -> Callable[[Any], dict[str, admin_pb.Node]]:
    """Reads a live replica's actor tree over its admin socket: every actor by its path."""

    def read(live: Any) -> dict[str, admin_pb.Node]:
        with grpc.insecure_channel(f"unix:{socket_path(live.port)}") as channel:
            method = channel.unary_unary("/anyserve.v1.Admin/Tree")
            root = admin_pb.TreeReply.parse(method(b"", timeout=10)).root
        assert root is not None
        found: dict[str, admin_pb.Node] = {}
        pending = [("", root)]
        while pending:
            above, node = pending.pop()
            path = f"{above}/{node.name}" if above else node.name
            found[path] = node
            pending += [(path, child) for child in node.children]
        return found

    return read


@pytest.fixture(scope="session")
def workers_of(tree_of: Any) -> Callable[[Any], dict[str, int]]:
    """The process ids of a live replica's workers, by name."""

    def read(live: Any) -> dict[str, int]:
        prefix = "replica/workers/"
        return {
            path.removeprefix(prefix): int(node.details["pid"])
            for path, node in tree_of(live).items()
            if path.startswith(prefix) and "pid" in node.details
        }

    return read


@pytest.fixture(scope="session")
def is_alive() -> Callable[[int], bool]:
    """Whether a process runs; one that waits to be reaped does not."""

    def check(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")

    return check


@pytest.fixture(scope="session")
def segments_of() -> Callable[[int], set[str]]:
    """The shared-memory segments that carry a replica's process id."""

    def names(pid: int) -> set[str]:
        return {path.name for path in SHARED_MEMORY.glob(f"anyserve-{pid}-*")}

    return names


@pytest.fixture
def launch(tmp_path: Path, transport: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the replica's command without waiting for it to serve; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "anyserve.replica",
                "--port",
                "0",
                "--transport",
                transport,
                *options,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "apps")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def replica_here(monkeypatch: pytest.MonkeyPatch, transport: str) -> Callable[..., Any]:
    """Runs a replica in this process, with real workers, to choose its patience and look inside."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "apps"))

    @asynccontextmanager
    async def run(workers: int = 1, **patience: float) -> AsyncIterator[tuple[Replica, Client]]:
        plan = Plan([AppSpec("behaviours", "behaviours:app", workers=workers)], {}, None)
        config = ReplicaConfig(plan, port=0, transport=transport, patience=Patience(**patience))
        replica = Replica(config)
        async with replica.running(), open_client(str(replica.address)) as client:
            yield replica, client

    return run
