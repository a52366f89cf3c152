"""A replica that is killed, and others beside it."""

from __future__ import annotations

from typing import Any

import numpy as np


def test_the_workers_of_a_killed_replica_die_and_only_its_memory_is_swept(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    workers_of: Any,
    is_alive: Any,
    segments_of: Any,
) -> None:
    dying = start_replica("--app", "behaviours:app", "--workers", "2")
    other = start_replica("--app", "behaviours:app")
    tensor = request_of("echo", INPUT=np.zeros(1 << 20, np.uint8))
    clients = [connect(live.address) for live in (dying, other)]
    for client in clients:
        client.call("ModelInfer", tensor)
    left, kept = segments_of(dying.process.pid), segments_of(other.process.pid)
    assert len(left) == len(kept) == 2  # of a request, and of a reply
    workers = list(workers_of(dying).values())
    # One whose loop is blocked sees no end of file: the kernel has to end it.
    # The call is held on to: grpcio cancels one that nobody holds.
    blocked = clients[0].stub.ModelInfer.future(request_of("block_loop", seconds=60))
    running = [f"replica/workers/behaviours-{index}" for index in (0, 1)]
    eventually(lambda: any(tree_of(dying)[path].details["running"] == "1" for path in running))
    assert not blocked.done()

    dying.process.kill()
    dying.process.wait()
    eventually(lambda: not any(map(is_alive, workers)), timeout=5)
    start_replica("--app", "examples.echo:app")
    assert not segments_of(dying.process.pid)
    assert segments_of(other.process.pid) == kept
    assert clients[1].call("ModelInfer", tensor).raw_output_contents == [bytes(1 << 20)]


def test_replicas_side_by_side_have_their_own_workers_and_trees(
    start_replica: Any, connect: Any, request_of: Any, workers_of: Any, is_alive: Any
) -> None:
    first = start_replica("--app", "examples.echo:app")
    second = start_replica("--app", "examples.echo:app")
    pids = workers_of(first)["echo-0"], workers_of(second)["echo-0"]
    assert pids[0] != pids[1]
    assert first.stop() == 0
    assert not is_alive(pids[0])
    assert workers_of(second)["echo-0"] == pids[1]
    connect(second.address).call("ModelInfer", request_of("echo", INPUT0=[1]))
