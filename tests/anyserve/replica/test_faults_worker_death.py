"""Workers that are killed: what becomes of their requests, and who is told why."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

pb: Any = service_pb2
CODE = grpc.StatusCode


def outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended."""
    error = call.exception(timeout=60)
    return (CODE.OK, "") if error is None else (call.code(), call.details())


def counted(client: Any, capability: str) -> tuple[int, int]:
    """The successes and failures that the replica has counted."""
    reply = client.call("ModelStatistics", pb.ModelStatisticsRequest(name=capability))
    statistics = reply.model_stats[0].inference_stats
    return statistics.success.count, statistics.fail.count


def test_requests_of_a_killed_worker_end_or_are_run_again_where_they_may_be(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    workers_of: Any,
    tmp_path: Path,
) -> None:
    live = start_replica("--app", "behaviours:app", "--workers", "2")
    client = connect(live.address)
    file = tmp_path / "busy"
    file.touch()
    calls = {
        name: [
            client.stub.ModelInfer.future(request_of(name, file=str(file)), timeout=60)
            for _ in range(40)
        ]
        for name in ("wait", "wait_again")
    }

    def running() -> dict[str, str]:
        details = tree_of(live)["replica/dispatcher"].details
        return {name: details[name].partition(" running")[0] for name in calls}

    eventually(lambda: running() == {"wait": "40", "wait_again": "40"})
    os.kill(workers_of(live)["behaviours-0"], signal.SIGKILL)
    eventually(lambda: running() == {"wait": "20", "wait_again": "40"})
    file.unlink()
    ends = {name: [outcome(call) for call in started] for name, started in calls.items()}
    assert ends["wait_again"] == [(CODE.OK, "")] * 40
    lost = (CODE.UNAVAILABLE, "worker behaviours-0 was killed by SIGKILL")
    assert Counter(ends["wait"]) == {(CODE.OK, ""): 20, lost: 20}
    assert counted(client, "wait_again") == (40, 0)
    assert counted(client, "wait") == (20, 20)

    restarted = eventually(
        lambda: (node := tree_of(live)["replica/workers/behaviours-0"]).state == "running" and node
    )
    assert restarted.restarts == 1
    assert "killed by SIGKILL" in restarted.last_error
    assert tree_of(live)["replica/workers/behaviours-1"].restarts == 0


def test_under_steady_load_every_request_has_one_outcome_through_two_kills(
    start_replica: Any, connect: Any, request_of: Any, eventually: Any, tree_of: Any
) -> None:
    live = start_replica("--app", "behaviours:app", "--workers", "2")
    stop = threading.Event()
    ends: dict[str, list[tuple[grpc.StatusCode, str]]] = {"echo": [], "fragile": []}

    def load(capability: str) -> None:
        client = connect(live.address)
        request = request_of(capability, INPUT=list(range(100)))
        while not stop.is_set():
            calls = [client.stub.ModelInfer.future(request, timeout=60) for _ in range(16)]
            ends[capability] += [outcome(call) for call in calls]

    def worker(name: str) -> Any:
        return tree_of(live)[f"replica/workers/{name}"]

    threads = [threading.Thread(target=load, args=[capability]) for capability in ends]
    for thread in threads:
        thread.start()
    try:
        for name in ("behaviours-0", "behaviours-1"):
            before = {capability: len(done) for capability, done in ends.items()}
            eventually(lambda b=before: all(len(ends[c]) > b[c] + 64 for c in ends))
            os.kill(int(worker(name).details["pid"]), signal.SIGKILL)
            eventually(lambda n=name: (w := worker(n)).restarts == 1 and w.state == "running")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(ends["echo"]) == {(CODE.OK, "")}
    for code, message in set(ends["fragile"]) - {(CODE.OK, "")}:
        assert code is CODE.UNAVAILABLE
        assert re.fullmatch(r"worker behaviours-\d was killed by SIGKILL", message)
    client = connect(live.address)
    for capability, done in ends.items():
        succeeded, failed = counted(client, capability)
        assert succeeded + failed == len(done)
        assert succeeded == done.count((CODE.OK, ""))


def test_while_no_worker_is_there_whoever_asks_is_told_how_the_last_one_ended(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    workers_of: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("ANYSERVE_TEST_GATE", str(gate))
    live = start_replica("--app", "gated:app")
    client = connect(live.address)
    gate.unlink()
    os.kill(workers_of(live)["gated-0"], signal.SIGKILL)
    eventually(gate.with_suffix(".loading").exists)  # the next one can't get ready

    reason = "worker gated-0 was killed by SIGKILL"
    refusal = client.refusal("ModelInfer", request_of("echo", x=[1]))
    assert refusal.code is CODE.UNAVAILABLE
    assert refusal.message == f"no worker for 'echo' is ready: {reason}"
    models = client.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
    echo = next(model for model in models if model.name == "echo")
    assert (echo.state, echo.reason) == ("UNAVAILABLE", reason)
    assert not client.call("ModelReady", pb.ModelReadyRequest(name="echo")).ready
    node = tree_of(live)["replica/workers/gated-0"]
    assert node.state == "starting"
    assert reason in node.last_error

    gate.touch()
    eventually(lambda: client.call("ModelReady", pb.ModelReadyRequest(name="echo")).ready)
    assert client.call("ModelInfer", request_of("echo", x=[1])).outputs[0].name == "x"
    models = client.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
    assert ("echo", "READY", "") in [(m.name, m.state, m.reason) for m in models]


def test_the_death_of_a_worker_is_logged_without_a_traceback_as_json_where_asked(
    start_replica: Any, connect: Any, request_of: Any, eventually: Any
) -> None:
    live = start_replica("--app", "behaviours:app", "--log-format", "json")
    client = connect(live.address)
    refusal = client.refusal("ModelInfer", request_of("crash", x=[1]))
    reason = "worker behaviours-0 was killed by SIGKILL"
    assert (refusal.code, refusal.message) == (CODE.UNAVAILABLE, reason)
    eventually(lambda: client.call("ModelReady", pb.ModelReadyRequest(name="echo")).ready)
    client.refusal("ModelInfer", request_of("fail", kind="unexpected"))
    assert live.stop() == 0
    events = [json.loads(line) for line in live.log_text().splitlines()]
    (death,) = (event for event in events if reason in event["message"])
    assert death["level"] == "error"
    assert "exception" not in death
    (failure,) = (event for event in events if "exception" in event)  # it is for the log alone
    assert (failure["actor"], failure["message"]) == (
        "worker behaviours-0",
        "the handler of 'fail' failed",
    )
    assert "behaviours.py" in failure["exception"]


def test_a_worker_that_always_dies_ends_the_replica_with_status_3_and_one_line(
    start_replica: Any,
) -> None:
    live = start_replica("--app", "doomed:app")
    assert live.process.wait(60) == 3
    lines = live.log_text().splitlines()
    assert lines[-1] == (
        "anyserve: the replica can't go on: child 'doomed-0' ended with WorkerFailed:"
        " worker doomed-0 exited with status 7, after 5 restarts in 60 s"
    )
    assert sum("starting again in" in line for line in lines) == 5
    assert "Traceback" not in live.log_text()
