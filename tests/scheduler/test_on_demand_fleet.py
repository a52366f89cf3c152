"""Capabilities on demand in a fleet of processes: the example, moves, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from anyserve_protos.anyserve import v1 as wire
from tritonclient.grpc import service_pb2

from anyserve.client import encode_request

pb: Any = service_pb2
CODE = grpc.StatusCode
ROOT = Path(__file__).parents[2]
QUICK = ("--on-demand-idle", "0.5", "--on-demand-cooldown", "0.5")
APPS = [f"--app=examples.on_demand:{name}" for name in ("upper", "lower", "title")]


def request(name: str, text: str = "Hello") -> Any:
    return pb.ModelInferRequest.FromString(encode_request(name, {"text": [text]}, {}))


def text_of(response: Any) -> bytes:
    content: bytes = response.raw_output_contents[0][4:]
    return content


def infer(address: str, *arguments: str) -> str:
    """What `anyserve infer` prints."""
    command = [sys.executable, "-m", "anyserve", "infer", address, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Fleet:
    """A scheduler and its replicas."""

    def __init__(self, start_replica: Any, scheduler: Any, eventually: Any) -> None:
        self._start_replica = start_replica
        self._eventually = eventually
        self.scheduler = scheduler

    def join(self, id: str, *options: str) -> Any:
        to = ("--scheduler", self.scheduler.address, "--replica-id", id)
        replica = self._start_replica(*options, *to)
        self._eventually(lambda: id in self.offers())
        return replica

    def offers(self) -> dict[str, dict[str, wire.Offer]]:
        """What each replica offers, by its id and the capability's name."""
        with grpc.insecure_channel(self.scheduler.address) as channel:
            method = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
            reply = wire.FleetReply.parse(method(b"", timeout=10, wait_for_ready=True))
        return {
            replica.replica_id: {offer.name: offer for offer in replica.offers}
            for replica in reply.replicas
        }

    def offer(self, id: str, name: str) -> wire.Offer:
        """One of them; one that is not loaded where there is none."""
        return self.offers().get(id, {}).get(name, wire.Offer(name=name))

    def loaded(self) -> dict[str, list[str]]:
        """The names of what each has loaded."""
        return {
            id: [name for name, offer in offers.items() if not offer.loadable]
            for id, offers in self.offers().items()
        }


@pytest.fixture
def fleet_of(start_replica: Any, start_scheduler: Any, eventually: Any) -> Callable[..., Fleet]:
    return lambda *options: Fleet(start_replica, start_scheduler(0, *QUICK, *options), eventually)


@pytest.mark.parametrize("where", [(), ("--in-process",)], ids=["workers", "in process"])
def test_the_first_request_for_what_is_not_loaded_is_answered(
    fleet_of: Any, connect: Any, where: tuple[str, ...]
) -> None:
    fleet = fleet_of()
    replica = fleet.join("a", *APPS, "--on-demand", "upper,lower,title", *where)
    assert fleet.loaded() == {"a": []}
    assert infer(fleet.scheduler.address, "upper", "text=hello") == "text: HELLO\n"
    assert fleet.loaded() == {"a": ["upper"]}
    # One that a client sends to a replica goes to the scheduler, and comes back when it can.
    other = fleet.join("b", *APPS[:2], "--on-demand", "upper,lower", *where)
    assert infer(other.address, "lower", "text=HELLO") == "text: hello\n"
    assert fleet.loaded() == {"a": ["upper"], "b": ["lower"]}
    assert (replica.stop(), other.stop()) == (0, 0)


def test_what_is_idle_makes_room_and_the_last_of_its_kind_does_not(
    fleet_of: Any, connect: Any, eventually: Any
) -> None:
    fleet = fleet_of()
    fleet.join("fixed", APPS[0])
    mover = fleet.join("mover", *APPS, "--on-demand", "upper,lower,title")
    connect(mover.address).call(
        "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="upper")
    )
    eventually(lambda: fleet.loaded()["mover"] == ["upper"])
    front = connect(fleet.scheduler.address)
    assert text_of(front.call("ModelInfer", request("lower"))) == b"hello"
    assert fleet.loaded() == {"fixed": ["upper"], "mover": ["lower"]}
    # `lower` is nowhere else now, however long it is idle.
    refusal = front.refusal("ModelInfer", request("title"), timeout=4)
    assert refusal.code is CODE.DEADLINE_EXCEEDED
    assert fleet.loaded() == {"fixed": ["upper"], "mover": ["lower"]}
    assert text_of(front.call("ModelInfer", request("upper"))) == b"HELLO"


def test_a_load_that_fails_is_told_to_whoever_waits_and_seen_in_the_fleet(
    fleet_of: Any, connect: Any
) -> None:
    fleet = fleet_of()
    fleet.join("a", "--app", "broken:unloadable", "--on-demand", "echo")
    front = connect(fleet.scheduler.address)
    for _ in range(2):
        refusal = front.refusal("ModelInfer", request("echo"))
        assert refusal.code is CODE.UNAVAILABLE
        assert "echo could not be loaded: a: " in refusal.message.replace(" version 1", "")
        assert "weights.bin: no such file" in refusal.message
    offer = fleet.offer("a", "echo")
    assert (offer.loadable, offer.failures) == (True, 1)
    assert "weights.bin: no such file" in offer.failure


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The app `gated` loads when this file is there; with `.loading`, it waits for that."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("ANYSERVE_TEST_GATE", str(gate))
    return gate


GATED = ("--app", "gated:app", "--on-demand", "echo")


class Asking:
    """A request under way, in a thread."""

    def __init__(self, client: Any, message: Any) -> None:
        self._client, self._message = client, message
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.outcome = self._client.stub.ModelInfer(self._message, timeout=30).model_name
        except grpc.RpcError as error:
            self.outcome = error.code()

    def end(self) -> Any:
        self._thread.join(40)
        return self.outcome


def test_a_replica_that_is_killed_while_it_loads_does_not_keep_another_from_it(
    fleet_of: Any, connect: Any, gate: Path, eventually: Any
) -> None:
    fleet = fleet_of()
    first = fleet.join("a", *GATED)
    asking = Asking(connect(fleet.scheduler.address), request("echo"))
    eventually(gate.with_suffix(".loading").exists)
    eventually(lambda: fleet.offer("a", "echo").loading)
    fleet.join("b", *GATED)
    first.process.kill()
    gate.touch()
    assert asking.end() == "echo"
    assert fleet.loaded()["b"] == ["echo"]


def test_a_scheduler_that_starts_anew_while_a_replica_loads_finds_it_loaded(
    fleet_of: Any, connect: Any, gate: Path, start_scheduler: Any, eventually: Any
) -> None:
    fleet = fleet_of()
    fleet.join("a", *GATED)
    asking = Asking(connect(fleet.scheduler.address), request("echo"))
    eventually(gate.with_suffix(".loading").exists)
    fleet.scheduler.kill()
    assert asking.end() is CODE.UNAVAILABLE
    fleet.scheduler = start_scheduler(fleet.scheduler.port, *QUICK)
    eventually(lambda: fleet.offer("a", "echo").loading)
    again = Asking(connect(fleet.scheduler.address), request("echo"))
    gate.touch()
    assert again.end() == "echo"


def test_a_stream_waits_for_what_it_needs_and_gets_every_answer(
    fleet_of: Any, connect: Any
) -> None:
    fleet = fleet_of()
    fleet.join("a", "--app", "examples.streaming:app", "--on-demand", "countdown")
    message = encode_request("countdown", {"start": np.array([2], np.int32)}, {})
    requests = iter([pb.ModelInferRequest.FromString(message)])
    front = connect(fleet.scheduler.address)
    replies = list(front.stub.ModelStreamInfer(requests, timeout=30))
    assert [reply.error_message for reply in replies] == [""] * 3
    numbers = [reply.infer_response.raw_output_contents[0] for reply in replies]
    assert numbers == [bytes([number, 0, 0, 0]) for number in (2, 1, 0)]


def test_metadata_of_what_is_not_loaded_is_answered_and_loads_nothing(
    fleet_of: Any, connect: Any
) -> None:
    fleet = fleet_of()
    fleet.join("a", *APPS, "--on-demand", "upper,lower,title")
    front = connect(fleet.scheduler.address)
    metadata = front.call("ModelMetadata", pb.ModelMetadataRequest(name="upper"))
    assert [tensor.name for tensor in metadata.inputs] == ["text"]
    assert front.call("ModelConfig", pb.ModelConfigRequest(name="upper")).config.name == "upper"
    assert not front.call("ModelReady", pb.ModelReadyRequest(name="upper")).ready
    assert fleet.loaded() == {"a": []}
