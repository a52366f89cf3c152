"""Scheduler and replicas as processes: killed, stopped, and come back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from anyserve_protos.anyserve import v1 as pb
from tritonclient.grpc import service_pb2

from anyserve.client import encode_request

ROOT = Path(__file__).parents[2]
LEASE = 1.5
APP = ("--app", "behaviours:app", "--in-process")


@pytest.fixture
def fleet_of() -> Iterator[Callable[[Any], dict[str, pb.FleetReplica]]]:
    """Reads a live scheduler's fleet, by replica."""

    def read(scheduler: Any) -> dict[str, pb.FleetReplica]:
        with grpc.insecure_channel(scheduler.address) as channel:
            method = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
            reply = pb.FleetReply.parse(method(b"", timeout=10, wait_for_ready=True))
        return {replica.replica_id: replica for replica in reply.replicas}

    return read


def state(fleet: dict[str, pb.FleetReplica], id: str) -> str:
    return fleet[id].state if id in fleet else "out"


def echo(client: Any) -> None:
    request = service_pb2.ModelInferRequest.FromString(encode_request("echo", {"INPUT0": [1]}, {}))
    assert client.call("ModelInfer", request).model_name == "echo"


def test_a_replica_is_known_while_it_lives_and_gone_when_it_has_stopped(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address)
    first = start_replica(*APP, *to)
    start_replica(*APP, *to, "--replica-id", "second", "--advertise", "127.0.0.2:9999")
    fleet = eventually(lambda: len(found := fleet_of(scheduler)) == 2 and found)
    assert fleet["second"].address == "127.0.0.2:9999"
    (name,) = fleet.keys() - {"second"}
    assert name.endswith(f"-{first.port}")
    assert fleet[name].address == first.address
    assert "echo" in {offer.name for offer in fleet[name].offers}
    assert first.stop() == 0
    assert fleet_of(scheduler).keys() == {"second"}


def test_a_scheduler_that_is_killed_costs_no_direct_request_and_finds_its_replicas_again(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, connect: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(*APP, "--scheduler", scheduler.address, "--replica-id", "a")
    client = connect(replica.address)
    before = eventually(lambda: fleet_of(scheduler).get("a"))
    scheduler.kill()
    for _ in range(20):
        echo(client)
    again = start_scheduler(scheduler.port)
    began = time.monotonic()
    after = eventually(lambda: echo(client) or fleet_of(again).get("a"))
    assert time.monotonic() - began < 10
    assert after.epoch > before.epoch
    assert [offer.name for offer in after.offers] == [offer.name for offer in before.offers]
    assert "serving alone" in replica.log_text()


def test_a_replica_that_is_killed_is_suspect_at_once_and_its_id_free_after_the_lease(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    options = (*APP, "--scheduler", scheduler.address, "--replica-id", "a")
    first = start_replica(*options)
    epoch = eventually(lambda: fleet_of(scheduler).get("a")).epoch
    first.process.kill()
    killed = time.monotonic()
    found = eventually(lambda: (f := fleet_of(scheduler)) and state(f, "a") == "suspect" and f)
    assert time.monotonic() - killed < LEASE
    assert (found["a"].attached, found["a"].last_error) == (False, "its link was lost")
    second = start_replica(*options)
    after = eventually(lambda: (f := fleet_of(scheduler).get("a")) and f.epoch > epoch and f)
    assert after.address == second.address


def test_a_replica_that_is_stopped_is_out_after_its_lease_and_joins_anew_when_it_goes_on(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, connect: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(*APP, "--scheduler", scheduler.address, "--replica-id", "a")
    epoch = eventually(lambda: fleet_of(scheduler).get("a")).epoch
    replica.process.send_signal(signal.SIGSTOP)
    try:
        seen = [state(fleet_of(scheduler), "a")]
        while seen[-1] != "out":
            now = eventually(lambda: (s := state(fleet_of(scheduler), "a")) != seen[-1] and s)
            seen.append(now)
    finally:
        replica.process.send_signal(signal.SIGCONT)
    assert seen == ["live", "suspect", "out"]
    assert eventually(lambda: fleet_of(scheduler).get("a")).epoch > epoch
    echo(connect(replica.address))


def test_a_replica_that_is_stopped_for_less_than_its_lease_keeps_its_epoch(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(*APP, "--scheduler", scheduler.address, "--replica-id", "a")
    epoch = eventually(lambda: fleet_of(scheduler).get("a")).epoch
    replica.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: state(fleet_of(scheduler), "a") == "suspect")
    finally:
        replica.process.send_signal(signal.SIGCONT)
    eventually(lambda: state(fleet_of(scheduler), "a") == "live")
    assert fleet_of(scheduler)["a"].epoch == epoch


def test_a_stopped_scheduler_costs_no_direct_request(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, connect: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(*APP, "--scheduler", scheduler.address, "--replica-id", "a")
    client = connect(replica.address)
    eventually(lambda: fleet_of(scheduler).get("a"))
    scheduler.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: echo(client) or "silent for 1.5 s" in replica.log_text())
        echo(client)
        began = time.monotonic()
        assert replica.stop() == 0
        assert time.monotonic() - began < 5
    finally:
        scheduler.process.send_signal(signal.SIGCONT)
    eventually(lambda: not fleet_of(scheduler))


def test_a_scheduler_that_was_stopped_for_longer_than_a_lease_ends_none(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, connect: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    ids = ("a", "b")
    options = (*APP, "--scheduler", scheduler.address, "--replica-id")
    replicas = [start_replica(*options, id) for id in ids]
    before = eventually(lambda: len(found := fleet_of(scheduler)) == 2 and found)
    scheduler.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: all("silent for 1.5 s" in each.log_text() for each in replicas))
    finally:
        scheduler.process.send_signal(signal.SIGCONT)
    echo(connect(scheduler.address))
    after = eventually(
        lambda: (found := fleet_of(scheduler)) and all(found[id].attached for id in ids) and found
    )
    assert [after[id].epoch for id in ids] == [before[id].epoch for id in ids]
    assert "stood still" in scheduler.log.read_text()
    assert "is out" not in scheduler.log.read_text()


def test_a_capability_that_is_unloaded_is_not_offered_any_more(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, connect: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(*APP, "--scheduler", scheduler.address, "--replica-id", "a")

    def offered() -> set[str]:
        found = fleet_of(scheduler).get("a")
        return {offer.name for offer in found.offers} if found else set()

    eventually(lambda: "echo" in offered())
    client = connect(replica.address)
    client.call(
        "RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="echo")
    )
    eventually(lambda: "fragile" in offered() and "echo" not in offered())
    client.call("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="echo"))
    eventually(lambda: "echo" in offered())


def run(*arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_anyserve_fleet_shows_replicas_and_what_they_offer(
    start_scheduler: Any, start_replica: Any, fleet_of: Any, eventually: Any
) -> None:
    scheduler = start_scheduler()
    options = ("--scheduler", scheduler.address, "--replica-id", "a")
    start_replica("--app", "examples.echo:app", "--in-process", *options)
    eventually(lambda: fleet_of(scheduler).get("a"))
    done = run("anyserve", "fleet", scheduler.address)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].endswith("1 replica")
    assert lines[1].split() == ["running", "queued", "slots", "wait", "tokens/s"]
    assert lines[2].startswith("a: live, at 127.0.0.1:")
    assert lines[3].split()[:2] == ["echo", "0"]
    done = run("anyserve", "fleet", scheduler.address, "--json")
    (shown,) = json.loads(done.stdout)["replicas"]
    assert (shown["replica_id"], shown["state"]) == ("a", "live")


@pytest.mark.parametrize("where", [(), ("--in-process",)])
def test_the_fleet_is_told_how_many_tokens_a_second_come(
    start_scheduler: Any,
    start_replica: Any,
    fleet_of: Any,
    connect: Any,
    where: tuple[str, ...],
    eventually: Any,
) -> None:
    scheduler = start_scheduler()
    replica = start_replica(
        "--app", "behaviours:app", *where, "--scheduler", scheduler.address, "--replica-id", "a"
    )
    requests = iter([service_pb2.ModelInferRequest(model_name="speak")])

    def speed() -> float:
        offers = fleet_of(scheduler)["a"].offers if "a" in fleet_of(scheduler) else ()
        return sum(offer.usage.tokens_per_second for offer in offers)

    answers = connect(replica.address).stub.ModelStreamInfer(requests)
    try:
        next(answers)
        eventually(lambda: 100 < speed() < 400)
    finally:
        answers.cancel()
    eventually(lambda: speed() == 0)


def test_anyserve_fleet_watches_until_it_is_interrupted(start_scheduler: Any) -> None:
    scheduler = start_scheduler()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "anyserve", "fleet", scheduler.address),
            *("--watch", "--every", "0.05"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        seen = 0
        while seen < 3:
            seen += "0 replicas" in process.stdout.readline()
        scheduler.kill()
        while "cannot connect" not in process.stdout.readline():
            pass
        start_again = start_scheduler(scheduler.port)
        while "0 replicas" not in process.stdout.readline():
            pass
        assert start_again.port == scheduler.port
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_anyserve_fleet_says_in_a_line_that_there_is_no_scheduler(replica: Any) -> None:
    done = run("anyserve", "fleet", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("anyserve: cannot connect to 127.0.0.1:1")
    done = run("anyserve", "fleet", replica.address)
    assert done.returncode == 1
    assert "no method '/anyserve.v1.Scheduler/Fleet'" in done.stderr


@pytest.mark.parametrize(
    "module, options, status, message",
    [
        (("anyserve_scheduler",), ("--lease", "2", "--interval", "2"), 2, "a lease is longer"),
        (("anyserve_scheduler",), ("--lease", "inf"), 2, "--lease 86400 or less"),
        (("anyserve", "scheduler"), ("--port", "x"), 2, "'x' is no port"),
        (("anyserve", "scheduler"), ("--host", "nowhere.invalid"), 1, "cannot listen"),
        (("anyserve", "replica"), ("--replica-id", "a"), 2, "--scheduler is missing"),
        (("anyserve", "replica"), ("--scheduler", "host"), 2, "neither host:port"),
        (
            ("anyserve", "replica"),
            ("--scheduler", "127.0.0.1:8000", "--host", "0.0.0.0"),
            2,
            "--advertise is missing",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_line(
    module: tuple[str, ...], options: tuple[str, ...], status: int, message: str
) -> None:
    done = run(*module, *options)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scheduler_stops_when_it_is_told_to(start_scheduler: Any) -> None:
    scheduler = start_scheduler()
    scheduler.process.send_signal(signal.SIGTERM)
    assert scheduler.process.wait(10) == 0
    assert scheduler.process.stdout.read() == "draining: 0 requests in flight\nstopped\n"
    assert scheduler.log.read_text() == ""
