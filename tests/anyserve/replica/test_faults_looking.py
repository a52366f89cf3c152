"""`anyserve tree` and `anyserve trace` on live replicas, and who else can look inside."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from anyserve.admin.socket_path import directory, socket_path

pb: Any = service_pb2
ROOT = Path(__file__).parents[3]


def start(*words: str) -> subprocess.Popen[str]:
    """Start the command line's program."""
    return subprocess.Popen(
        [sys.executable, "-m", "anyserve", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: str) -> tuple[int, str, str]:
    """Run it: exit status, standard output and standard error."""
    process = start(*words)
    printed, errors = process.communicate(timeout=60)
    return process.returncode, printed, errors


def test_the_tree_shows_every_actor_of_a_live_replica(replica: Any) -> None:
    status, printed, errors = run("tree", replica.address)
    assert (status, errors) == (0, "")
    about, head, *rows = printed.splitlines()
    assert replica.address in about
    assert head.split() == ["actor", "state", "age", "mailbox", "restarts"]
    names = [row.lstrip("│ ").removeprefix("├─ ").removeprefix("└─ ").split()[0] for row in rows]
    assert names == [
        *("replica", "objects", "dispatcher", "workers", "behaviours-0"),
        *("ingress", "admin", "repository"),
    ]
    assert all(" running " in row for row in rows)
    (worker,) = (row for row in rows if "behaviours-0" in row)
    assert "app=behaviours:app" in worker
    assert "pid=" in worker
    (ingress,) = (row for row in rows if "ingress" in row)
    assert f"address={replica.address}" in ingress


def test_while_apps_load_the_replica_is_live_and_not_ready_and_shows_its_tree(
    launch: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("ANYSERVE_TEST_GATE", str(gate))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch("--app", "gated:app", "--port", str(port))
    eventually(gate.with_suffix(".loading").exists)
    status, printed, errors = run("tree", f"127.0.0.1:{port}")
    assert (status, errors) == (0, "")
    (worker,) = (row for row in printed.splitlines() if "gated-0" in row)
    assert " starting " in worker
    client = connect(f"127.0.0.1:{port}")
    assert client.call("ServerLive", pb.ServerLiveRequest()).live
    assert not client.call("ServerReady", pb.ServerReadyRequest()).ready
    refusal = client.refusal("ModelInfer", request_of("echo", x=[1]))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.message == "no worker for 'echo' is ready: it is loading"
    index = client.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
    assert ("echo", "LOADING") in [(model.name, model.state) for model in index]
    gate.touch()
    eventually(lambda: client.call("ServerReady", pb.ServerReadyRequest()).ready)
    client.call("ModelInfer", request_of("echo", x=[1]))


def test_where_nobody_serves_the_commands_say_so_in_one_line(tmp_path: Path) -> None:
    for words in (["tree"], ["trace", "-o", str(tmp_path / "trace.json")]):
        status, printed, errors = run(*words, "127.0.0.1:1")
        assert (status, printed) == (1, "")
        assert errors == "anyserve: no replica or scheduler of this user serves on port 1 here\n"
    assert list(tmp_path.iterdir()) == []


def test_the_admin_service_is_on_a_socket_of_the_user_alone(
    replica: Any, raw: Any, eventually: Any
) -> None:
    path = socket_path(replica.port)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory().stat().st_mode) == 0o700
    assert path.stat().st_uid == os.getuid()
    for method in ("Tree", "Status", "Trace"):
        with pytest.raises(grpc.RpcError) as caught:
            raw.channel.unary_unary(f"/anyserve.v1.Admin/{method}")(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_admin_socket_goes_with_its_replica(start_replica: Any) -> None:
    live = start_replica("--app", "examples.echo:app")
    assert socket_path(live.port).exists()
    assert live.stop() == 0
    assert not socket_path(live.port).exists()


def test_a_trace_joins_a_requests_spans_in_the_replica_and_its_worker(
    replica: Any, raw: Any, request_of: Any, workers_of: Any, tmp_path: Path
) -> None:
    output = tmp_path / "trace.json"
    request = request_of("echo", INPUT=np.zeros(100_000, np.uint8))
    request.id = "mine"
    blocking = request_of("block_loop", seconds=0.1)
    tracing = start("trace", replica.address, "--seconds", "1", "-o", str(output))
    while tracing.poll() is None:
        raw.call("ModelInfer", request)
        raw.call("ModelInfer", blocking)
    printed, errors = tracing.communicate()
    assert (tracing.returncode, errors) == (0, "")
    assert printed == f"{output}: {output.stat().st_size} bytes; open it at ui.perfetto.dev\n"

    events = json.loads(output.read_text())["traceEvents"]
    pids = {replica.process.pid: "replica", workers_of(replica)["behaviours-0"]: "behaviours-0"}
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named.keys() == pids.keys()
    assert named[replica.process.pid] == "replica"
    assert all(e["dur"] >= 0 and e["ts"] > 0 for e in events if e["ph"] == "X")

    mine = {e["id"] for e in events if e.get("args", {}).get("logged_as", "").startswith("mine#")}
    spans = defaultdict(set)
    for event in events:
        if event["ph"] == "b" and event["id"] in mine:
            spans[event["id"]].add((pids[event["pid"]], event["name"]))
    whole = {("replica", "ModelInfer"), ("replica", "run"), ("behaviours-0", "echo")}
    assert sum(found == whole for found in spans.values()) >= len(spans) - 2 > 0
    begun = sorted((e["id"], e["pid"], e["name"]) for e in events if e["ph"] == "b")
    ended = sorted((e["id"], e["pid"], e["name"]) for e in events if e["ph"] == "e")
    assert begun == ended
    arrows = defaultdict(set)
    for event in events:
        if event["ph"] in "sf":
            arrows[event["id"]].add((event["ph"], pids[event["pid"]]))
    assert {("s", "replica"), ("f", "behaviours-0")} in arrows.values()
    blocked = [e for e in events if e.get("cat") == "blocking" and pids[e["pid"]] != "replica"]
    assert blocked
    assert all(e["dur"] >= 50_000 for e in blocked)


def test_a_trace_that_is_given_up_leaves_nobody_tracing(
    replica: Any, eventually: Any, tmp_path: Path
) -> None:
    with grpc.insecure_channel(f"unix:{socket_path(replica.port)}") as channel:
        method = channel.unary_stream("/anyserve.v1.Admin/Trace")
        # TraceRequest{seconds: 60.0}: field 1, a double, little-endian.
        call = method(b"\x09" + np.float64(60).tobytes(), timeout=30)
        second = start("trace", replica.address, "-o", str(tmp_path / "second"))
        _, errors = second.communicate(timeout=30)
        assert errors == "anyserve: it is being traced already\n"
        call.cancel()
    output = tmp_path / "third"

    def traced() -> bool:
        return run("trace", replica.address, "--seconds", "0.1", "-o", str(output))[0] == 0

    eventually(traced)
    assert json.loads(output.read_text())["traceEvents"]


def test_traces_given_up_while_a_worker_is_blocked_do_not_cost_it_its_life(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    tree_of: Any,
    tmp_path: Path,
) -> None:
    live = start_replica("--app", "behaviours:app")
    client = connect(live.address)
    call = client.stub.ModelInfer.future(request_of("block_loop", seconds=2.5), timeout=60)
    eventually(lambda: tree_of(live)["replica/workers/behaviours-0"].details["running"] == "1")
    with grpc.insecure_channel(f"unix:{socket_path(live.port)}") as channel:
        method = channel.unary_stream("/anyserve.v1.Admin/Trace")
        for _ in range(3):
            given_up = method(b"\x09" + np.float64(0.05).tobytes(), timeout=0.5)
            with pytest.raises(grpc.RpcError):
                list(given_up)
    assert call.exception(timeout=20) is None
    worker = tree_of(live)["replica/workers/behaviours-0"]
    assert (worker.state, worker.restarts) == ("running", 0)
    client.call("ModelInfer", request_of("echo", INPUT=[1]))
    assert tree_of(live)["replica/workers/behaviours-0"].restarts == 0
