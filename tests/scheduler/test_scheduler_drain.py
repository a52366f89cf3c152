"""How a scheduler stops: what is on its way may end, what comes is refused, replicas serve on."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from anyserve_protos.anyserve import v1 as pb
from tritonclient.grpc import service_pb2

from anyserve.client import encode_request

CODE = grpc.StatusCode
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""A HealthCheckResponse, as bytes."""
BEHAVIOURS = ("--app", "behaviours:app", "--in-process")
LONG_LEASE = ("--lease", "10", "--interval", "2")


def request(capability: str, **inputs: Any) -> Any:
    return service_pb2.ModelInferRequest.FromString(encode_request(capability, inputs, {}))


def replicas_of(scheduler: Any) -> list[str]:
    with grpc.insecure_channel(scheduler.address) as channel:
        method = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
        reply = pb.FleetReply.parse(method(b"", timeout=10, wait_for_ready=True))
    return sorted(replica.replica_id for replica in reply.replicas)


def watch(client: Any) -> Any:
    """An open Watch of the server's health, which serves."""
    watched = client.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
    assert next(watched) == SERVING
    return watched


def open_ended(*requests: Any) -> Iterator[Any]:
    """The requests of a stream whose client does not end its side."""
    yield from requests
    queue.Queue[Any]().get(timeout=60)


def output(response: Any) -> str:
    name: str = response.outputs[0].name
    return name


def test_what_is_on_its_way_is_answered_and_replicas_find_the_next_scheduler(
    start_scheduler: Any, start_replica: Any, connect: Any, tmp_path: Path, eventually: Any
) -> None:
    scheduler = start_scheduler(0, *LONG_LEASE)
    ids = ["a", "b"]
    replicas = [
        start_replica(*BEHAVIOURS, "--scheduler", scheduler.address, "--replica-id", id)
        for id in ids
    ]
    eventually(lambda: replicas_of(scheduler) == ids)
    client, watcher = connect(scheduler.address), connect(scheduler.address)
    files = [tmp_path / str(number) for number in range(8)]
    running = [
        client.stub.ModelInfer.future(request("until", file=str(file)), timeout=60)
        for file in files[:6]
    ]
    streams = [
        client.stub.ModelStreamInfer(iter([request("until", file=str(file))]), timeout=60)
        for file in files[6:]
    ]
    eventually(lambda: all(file.exists() for file in files))
    watched = watch(watcher)

    scheduler.process.send_signal(signal.SIGTERM)
    assert next(watched) == NOT_SERVING
    for other in (client, connect(scheduler.address)):
        assert other.refusal("ModelInfer", request("echo", INPUT0=[1])).code is CODE.UNAVAILABLE
    assert scheduler.process.poll() is None
    assert not any("serving alone" in each.log_text() for each in replicas)
    for file in files:
        file.unlink()
    assert [output(call.result(timeout=30)) for call in running] == ["done"] * 6
    assert [output(next(call).infer_response) for call in streams] == ["done"] * 2
    assert scheduler.process.wait(20) == 0
    assert scheduler.process.stdout.read().splitlines() == [
        "draining: 8 requests in flight",
        "stopped",
    ]
    assert "Traceback" not in scheduler.log.read_text()

    for replica in replicas:
        said = "no scheduler, serving alone: the scheduler is stopping"
        eventually(lambda replica=replica, said=said: said in replica.log_text())
        connect(replica.address).call("ModelInfer", request("echo", INPUT0=[1]))
    again = start_scheduler(scheduler.port, *LONG_LEASE)
    began = time.monotonic()
    eventually(lambda: replicas_of(again) == ids)
    assert time.monotonic() - began < 10


def test_what_a_replica_has_handed_over_is_answered_too(
    start_scheduler: Any, start_replica: Any, connect: Any, tmp_path: Path, eventually: Any
) -> None:
    scheduler = start_scheduler(0, *LONG_LEASE)
    to = ("--scheduler", scheduler.address, "--replica-id")
    asked = start_replica("--app", "examples.echo:app", "--in-process", *to, "a")
    start_replica(*BEHAVIOURS, *to, "b")
    eventually(lambda: replicas_of(scheduler) == ["a", "b"])
    file = tmp_path / "runs"
    call = connect(asked.address).stub.ModelInfer.future(
        request("until", file=str(file)), timeout=60
    )
    eventually(file.exists)
    watched = watch(connect(scheduler.address))
    scheduler.process.send_signal(signal.SIGTERM)
    assert next(watched) == NOT_SERVING
    refusal = connect(asked.address).refusal("ModelInfer", request("until", file=str(file)))
    assert refusal.code in (CODE.NOT_FOUND, CODE.UNAVAILABLE)
    file.unlink()
    assert output(call.result(timeout=30)) == "done"
    assert scheduler.process.wait(20) == 0


def test_a_stream_takes_no_more_requests_and_an_idle_one_holds_nobody_up(
    start_scheduler: Any, start_replica: Any, connect: Any, tmp_path: Path, eventually: Any
) -> None:
    scheduler = start_scheduler(0, *LONG_LEASE, "--drain-timeout", "60")
    start_replica(*BEHAVIOURS, "--scheduler", scheduler.address, "--replica-id", "a")
    eventually(lambda: replicas_of(scheduler) == ["a"])
    client, file = connect(scheduler.address), tmp_path / "runs"
    idle = client.stub.ModelStreamInfer(open_ended(request("echo", INPUT0=[1])), timeout=60)
    next(idle)
    busy = client.stub.ModelStreamInfer(open_ended(request("until", file=str(file))), timeout=60)
    eventually(file.exists)
    scheduler.process.send_signal(signal.SIGINT)
    with pytest.raises(grpc.RpcError):
        next(idle)
    assert (idle.code(), idle.details()) == (CODE.UNAVAILABLE, "the scheduler is stopping")
    assert scheduler.process.poll() is None
    file.unlink()
    assert output(next(busy).infer_response) == "done"
    with pytest.raises(grpc.RpcError):
        next(busy)
    assert busy.code() is CODE.UNAVAILABLE
    assert scheduler.process.wait(20) == 0


@pytest.mark.parametrize("ended_by", ["the timeout", "a second signal"])
def test_what_does_not_end_in_time_is_cancelled(
    start_scheduler: Any,
    start_replica: Any,
    connect: Any,
    tmp_path: Path,
    ended_by: str,
    eventually: Any,
) -> None:
    timeout = "0.3" if ended_by == "the timeout" else "60"
    scheduler = start_scheduler(0, *LONG_LEASE, "--drain-timeout", timeout)
    start_replica(*BEHAVIOURS, "--scheduler", scheduler.address, "--replica-id", "a")
    eventually(lambda: replicas_of(scheduler) == ["a"])
    client, file = connect(scheduler.address), tmp_path / "runs"
    call = client.stub.ModelInfer.future(request("hold_one", file=str(file)), timeout=60)
    eventually(file.exists)
    watched = watch(client)
    scheduler.process.send_signal(signal.SIGTERM)
    if ended_by == "a second signal":
        assert next(watched) == NOT_SERVING
        assert scheduler.process.poll() is None
        scheduler.process.send_signal(signal.SIGTERM)
    assert call.exception(timeout=20).code() is CODE.UNAVAILABLE
    assert scheduler.process.wait(20) == 0
    eventually(lambda: Path(f"{file}.ended").exists())
    assert "Traceback" not in scheduler.log.read_text()
