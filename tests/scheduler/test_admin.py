"""`anyserve tree` and `anyserve trace` of a scheduler, alone and with its replicas."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from anyserve_protos.anyserve import v1 as pb

from anyserve.admin.socket_path import socket_path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> tuple[int, str, str]:
    """Run the command line's program: exit status, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "anyserve", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def processes(trace: Path) -> dict[str, int]:
    """The process id of each process of a trace, by its name."""
    events = json.loads(trace.read_text())["traceEvents"]
    return {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}


def test_the_tree_of_a_scheduler_has_the_state_of_registry_and_gateway(
    start_scheduler: Callable[..., Any], start_replica: Callable[..., Any], joined: Any
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--replica-id", "a")
    start_replica("--app", "twins:app", "--in-process", *to)
    joined(scheduler, "a")
    status, printed, errors = run("tree", scheduler.address)
    assert (status, errors) == (0, "")
    about, _, *rows = printed.splitlines()
    assert f"process {scheduler.process.pid}, serves {scheduler.address}" in about
    names = [row.lstrip("│ ").removeprefix("├─ ").removeprefix("└─ ").split()[0] for row in rows]
    assert names == ["scheduler", "leases", "channels", "gateway", "on-demand", "ingress", "admin"]
    assert "replicas=1, live=1" in rows[1]
    assert "in_flight=0" in rows[3]


def test_a_trace_of_a_scheduler_has_its_replicas_and_their_workers_in_one_file(
    start_scheduler: Callable[..., Any],
    start_replica: Callable[..., Any],
    tmp_path: Path,
    joined: Any,
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--replica-id")
    a = start_replica("--app", "twins:app", *to, "a")
    b = start_replica("--app", "twins:app", "--in-process", *to, "b")
    joined(scheduler, "a", "b")
    output = tmp_path / "fleet.json"
    status, printed, errors = run(
        "trace", scheduler.address, "--seconds", "0.2", b.address, "-o", str(output)
    )
    assert (status, errors) == (0, "")
    assert printed.startswith(f"{output}: ")
    found = processes(output)
    pids = {"scheduler": scheduler.process, "replica a": a.process, "replica b": b.process}
    assert {name: found[name] for name in pids} == {name: p.pid for name, p in pids.items()}
    assert found.keys() - pids.keys() == {"worker twins-0 of replica a"}


def test_a_replica_that_is_not_there_is_named_and_costs_no_other_its_part(
    start_scheduler: Callable[..., Any],
    start_replica: Callable[..., Any],
    tmp_path: Path,
    joined: Any,
) -> None:
    scheduler = start_scheduler()
    live = start_replica(
        *("--app", "twins:app", "--in-process", "--scheduler", scheduler.address),
        *("--replica-id", "far", "--advertise", f"localhost:{scheduler.port}"),
    )
    joined(scheduler, "far")
    output = tmp_path / "trace.json"
    words = ("--seconds", "0.1", "-o", str(output))
    status, _, errors = run("trace", scheduler.address, *words)
    assert errors == (
        f"anyserve: replica far at localhost:{scheduler.port} is not on this machine:"
        " its part is missing\n"
    )
    assert status == 0
    assert list(processes(output)) == ["scheduler"]
    # As it would be forwarded from another machine.
    forwarded = f"unix:{socket_path(live.port)}"
    assert run("trace", scheduler.address, forwarded, *words)[::2] == (0, "")
    assert list(processes(output)) == ["scheduler", "replica far"]


def test_of_two_traces_at_once_the_second_says_who_is_being_traced(
    start_scheduler: Callable[..., Any], start_replica: Callable[..., Any], tmp_path: Path
) -> None:
    scheduler = start_scheduler()
    replica = start_replica("--app", "twins:app", "--in-process")
    output = tmp_path / "trace.json"
    words = ("trace", scheduler.address, replica.address, "--seconds", "0.1", "-o", str(output))
    with grpc.insecure_channel(f"unix:{socket_path(scheduler.port)}") as channel:
        method = channel.unary_stream("/anyserve.v1.Admin/Trace")
        first = method(bytes(pb.TraceRequest(seconds=60)), timeout=60)
        status, _, errors = run(*words)
        assert not first.done()
        first.cancel()
    assert status == 1
    assert errors == f"anyserve: {scheduler.address}: it is being traced already\n"
    assert list(processes(output)) == ["replica"]


@pytest.fixture
def joined(eventually: Any) -> Callable[..., None]:
    """Waits until the scheduler knows these replicas."""

    def wait(scheduler: Any, *ids: str) -> None:
        def known() -> set[str]:
            reply = pb.FleetReply.parse(method(b"", timeout=20, wait_for_ready=True))
            return {replica.replica_id for replica in reply.replicas}

        with grpc.insecure_channel(scheduler.address) as channel:
            method = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
            eventually(lambda: known() == set(ids))

    return wait
