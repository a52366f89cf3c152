"""Memory: tensors lent, mapped and given back, whoever dies; slow readers hold their handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

MIB = 1 << 20
CLIENT = """
import sys
import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
address, path = sys.argv[1:]
channel = grpc.insecure_channel(address)
method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
method(open(path, "rb").read())
"""


@pytest.fixture
def check_returned(replica: Any, tree_of: Any, eventually: Any) -> Callable[[], None]:
    """Asserts that no request's block is lent any more."""

    def check() -> None:
        eventually(lambda: tree_of(replica)["replica/objects"].details["leases"] == "0")

    return check


def memory(pid: int, field: str) -> int:
    """A figure of a process's memory, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


@pytest.mark.parametrize("size", [60_000, MIB], ids=["inline", "in shared memory"])
def test_a_slow_reader_holds_the_handler_in_bounded_memory(
    replica: Any,
    raw: Any,
    request_of: Any,
    eventually: Any,
    workers_of: Any,
    segments_of: Any,
    tmp_path: Path,
    size: int,
) -> None:
    count = tmp_path / "count"
    pids = [replica.process.pid, *workers_of(replica).values()]
    before = [memory(pid, "RssAnon") for pid in pids]

    def given() -> int:
        return int(count.read_text() or 0) if count.exists() else 0

    call = raw.stub.ModelStreamInfer(
        iter([request_of("flood", file=str(count), size=size)]), timeout=60
    )
    next(call)
    eventually(lambda: given() >= 64)
    for _ in range(300):  # goes through the same worker, and gives a handler that runs on its time
        raw.call("ModelInfer", request_of("echo", INPUT=[1]))
    held = given()
    assert held < 64 + 64 + 16 * MIB // size  # credit, and what the connection's windows take
    for pid, then in zip(pids, before, strict=True):
        assert memory(pid, "RssAnon") < then + 64 * MIB
    lent = [Path("/dev/shm", name).stat().st_size for name in segments_of(replica.process.pid)]
    assert sum(lent) <= 4 * 32 * MIB
    for _ in range(200):
        assert len(next(call).infer_response.raw_output_contents[0]) == size
    eventually(lambda: given() > held + 100)
    call.cancel()
    with pytest.raises(grpc.RpcError):
        list(call)


@pytest.mark.parametrize("size", [65_535, 65_536, MIB, 8 * MIB])
def test_tensors_of_any_size_come_back_as_they_were_and_their_blocks_are_given_back(
    raw: Any, request_of: Any, check_returned: Any, size: int
) -> None:
    tensor = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    reply = raw.call("ModelInfer", request_of("echo", INPUT=tensor))
    assert reply.raw_output_contents == [tensor.tobytes()]
    check_returned()


def test_a_large_tensor_is_mapped_into_the_worker_read_only_and_aligned(
    replica: Any, raw: Any, request_of: Any, workers_of: Any, check_returned: Any
) -> None:
    # An odd length before it, so that alignment is no chance.
    request = request_of("about", x=np.zeros(70_001, np.uint8), y=np.zeros(MIB, np.float64))
    reply = raw.call("ModelInfer", request)
    told = {
        output.name: content
        for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    assert told["writeable"] == b"\0"
    assert told["aligned"] == b"\1"
    maps = Path(f"/proc/{workers_of(replica)['behaviours-0']}/maps").read_text().splitlines()
    segment = f"/dev/shm/anyserve-{replica.process.pid}-"
    assert any(segment in line and line.split()[1] == "r--s" for line in maps)
    check_returned()


def test_a_client_that_dies_in_its_request_leaves_no_block_lent(
    replica: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    check_returned: Any,
    tmp_path: Path,
) -> None:
    file, message = tmp_path / "runs", tmp_path / "message"
    request = request_of("hold_one", file=str(file), x=np.zeros(8 * MIB, np.uint8))
    message.write_bytes(request.SerializeToString())
    client = subprocess.Popen([sys.executable, "-c", CLIENT, replica.address, str(message)])
    try:
        eventually(file.exists)
        assert tree_of(replica)["replica/objects"].details["leases"] == "1"
    finally:
        client.kill()
        client.wait()
    check_returned()
    eventually(Path(f"{file}.ended").exists)


def test_a_worker_that_dies_in_a_request_leaves_no_block_lent_and_no_segment(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    workers_of: Any,
    segments_of: Any,
    tmp_path: Path,
) -> None:
    live = start_replica("--app", "behaviours:app")
    client, file = connect(live.address), tmp_path / "runs"
    tensor = np.zeros(8 * MIB, np.uint8)
    client.call("ModelInfer", request_of("echo", INPUT=tensor))
    assert len(segments_of(live.process.pid)) == 2
    call = client.stub.ModelInfer.future(request_of("until", file=str(file), x=tensor), timeout=60)
    eventually(file.exists)
    os.kill(workers_of(live)["behaviours-0"], signal.SIGKILL)
    assert call.exception(timeout=20).code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: tree_of(live)["replica/objects"].details["leases"] == "0")
    # The replica's own stays, for the next requests.
    eventually(lambda: len(segments_of(live.process.pid)) == 1)
    assert live.stop() == 0
    assert segments_of(live.process.pid) == set()


async def test_where_shared_memory_is_full_tensors_travel_inline(replica_here: Any) -> None:
    async with replica_here() as (replica, client):
        replica._objects.arena.limit = 0  # as /dev/shm has it when it is full
        tensor = np.arange(MIB, dtype=np.int64)
        response = await client.infer("echo", {"INPUT": tensor})
        assert np.array_equal(response.outputs["OUTPUT"], tensor)
        assert replica._objects.arena.statistics().segments == 0
