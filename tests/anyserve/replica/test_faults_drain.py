"""How a replica stops: what runs may end, what comes is refused, a second signal waits for none."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

pb: Any = service_pb2
CODE = grpc.StatusCode
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""A HealthCheckResponse, as bytes."""


def health(channel: grpc.Channel) -> bytes:
    method = channel.unary_unary("/grpc.health.v1.Health/Check")
    answer: bytes = method(b"", timeout=20)
    return answer


def watch(channel: grpc.Channel) -> Any:
    """An open Watch of the server's health."""
    return channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)


def open_ended(*requests: Any) -> Iterator[Any]:
    """The requests of a stream whose client does not end its side."""
    yield from requests
    queue.Queue[Any]().get(timeout=60)


def test_what_runs_may_end_while_new_requests_are_refused_and_health_says_so(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    workers_of: Any,
    is_alive: Any,
    segments_of: Any,
    tmp_path: Path,
) -> None:
    live = start_replica("--app", "behaviours:app")
    client, file = connect(live.address), tmp_path / "runs"
    running = client.stub.ModelInfer.future(request_of("until", file=str(file)), timeout=60)
    eventually(file.exists)
    worker = workers_of(live)["behaviours-0"]
    watched = watch(client.channel)
    assert next(watched) == SERVING

    live.process.send_signal(signal.SIGTERM)
    assert next(watched) == NOT_SERVING
    for other in (client, connect(live.address)):
        assert health(other.channel) == NOT_SERVING
        assert not other.call("ServerReady", pb.ServerReadyRequest()).ready
        refusal = other.refusal("ModelInfer", request_of("echo", INPUT=[1]))
        assert refusal.code is CODE.UNAVAILABLE
        assert refusal.message == "the replica is draining"
    assert live.process.poll() is None

    file.unlink()
    assert running.result(timeout=30).outputs[0].name == "done"
    assert live.process.wait(20) == 0
    assert live.process.stdout.read().splitlines()[-2:] == [
        "draining: 1 requests in flight",
        "stopped",
    ]
    assert "Traceback" not in live.log_text()
    assert not is_alive(worker)
    assert not segments_of(live.process.pid)


def test_large_requests_that_are_refused_do_not_count_as_those_that_run(
    start_replica: Any, connect: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    live = start_replica("--app", "behaviours:app")
    client, file = connect(live.address), tmp_path / "runs"
    running = client.stub.ModelInfer.future(request_of("until", file=str(file)), timeout=60)
    eventually(file.exists)
    watched = watch(client.channel)
    assert next(watched) == SERVING

    live.process.send_signal(signal.SIGTERM)
    assert next(watched) == NOT_SERVING
    for _ in range(3):
        refusal = client.refusal("ModelInfer", request_of("echo", INPUT=[1.0] * 65_536))
        assert refusal.message == "the replica is draining"
    file.unlink()
    assert running.result(timeout=30).outputs[0].name == "done"


def test_a_stream_ends_when_what_it_runs_has_ended_and_an_idle_one_holds_nobody_up(
    start_replica: Any, connect: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    live = start_replica("--app", "behaviours:app", "--drain-timeout", "60")
    client, file = connect(live.address), tmp_path / "runs"
    idle = client.stub.ModelStreamInfer(open_ended(request_of("echo", INPUT=[1])), timeout=60)
    assert next(idle).infer_response.outputs[0].name == "OUTPUT"
    busy = client.stub.ModelStreamInfer(open_ended(request_of("until", file=str(file))), timeout=60)
    eventually(file.exists)
    watched = watch(client.channel)
    assert next(watched) == SERVING

    live.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError):
        next(idle)
    assert (idle.code(), idle.details()) == (CODE.UNAVAILABLE, "the replica is draining")
    assert live.process.poll() is None
    file.unlink()
    assert next(busy).infer_response.outputs[0].name == "done"
    with pytest.raises(grpc.RpcError):
        next(busy)
    assert busy.code() is CODE.UNAVAILABLE
    assert live.process.wait(20) == 0


def test_the_drain_timeout_cancels_what_is_left(
    start_replica: Any, connect: Any, request_of: Any, eventually: Any, tmp_path: Path
) -> None:
    live = start_replica("--app", "behaviours:app", "--drain-timeout", "0.3")
    client, file = connect(live.address), tmp_path / "runs"
    call = client.stub.ModelInfer.future(request_of("hold_one", file=str(file)), timeout=60)
    eventually(file.exists)
    live.process.send_signal(signal.SIGINT)
    assert call.exception(timeout=20).code() is CODE.UNAVAILABLE
    assert live.process.wait(20) == 0
    assert Path(f"{file}.ended").exists()
    assert "Traceback" not in live.log_text()


def test_a_second_signal_stops_at_once(
    start_replica: Any,
    connect: Any,
    request_of: Any,
    eventually: Any,
    workers_of: Any,
    is_alive: Any,
    tmp_path: Path,
) -> None:
    live = start_replica("--app", "behaviours:app", "--drain-timeout", "60")
    client = connect(live.address)
    file = tmp_path / "runs"
    request = request_of("stubborn", file=str(file), seconds=60)
    call = client.stub.ModelInfer.future(request, timeout=60)
    worker = workers_of(live)["behaviours-0"]
    eventually(file.exists)
    watched = watch(client.channel)
    next(watched)
    live.process.send_signal(signal.SIGTERM)
    assert next(watched) == NOT_SERVING
    began = time.monotonic()
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(20) == 0
    assert time.monotonic() - began < 4  # a worker that is not killed has 5 seconds
    assert call.exception(timeout=20).code() is CODE.UNAVAILABLE
    assert not is_alive(worker)
    assert "Traceback" not in live.log_text()


def test_a_signal_while_an_app_loads_cancels_its_loading(
    launch: Any, eventually: Any, is_alive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    loading = gate.with_suffix(".loading")
    monkeypatch.setenv("ANYSERVE_TEST_GATE", str(gate))
    process = launch("--app", "gated:app")
    worker = int(eventually(lambda: loading.exists() and loading.read_text()))
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert printed.splitlines()[-1] == "stopped"
    assert errors == ""
    assert not loading.exists()  # its lifespan was cancelled, not killed
    assert not is_alive(worker)


def test_a_second_signal_while_an_app_loads_kills_its_worker(
    launch: Any, eventually: Any, is_alive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("ANYSERVE_TEST_GATE", str(gate))
    process = launch("--app", "stuck:app")
    worker = int(eventually(lambda: gate.exists() and gate.read_text()))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("anyserve ")
    assert process.stdout.readline() == "stopping\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 4
    assert (process.returncode, printed, errors) == (0, "stopped\n", "")
    assert not is_alive(worker)
