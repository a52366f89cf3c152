"""Whatever is asked of a model, it is answered at every door: front door and replicas alike."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
from tritonclient import http
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

DOORS = ("scheduler", "first", "second")


@attrs.frozen
class Fleet:
    """A scheduler and two replicas, of which each has what the other has not."""

    scheduler: Any
    addresses: dict[str, str]
    rest: str
    """Where the first replica serves HTTP."""

    def client(self, door: str) -> InferenceServerClient:
        return InferenceServerClient(self.addresses[door])


@pytest.fixture
def fleet(
    start_scheduler: Callable[..., Any],
    start_replica: Callable[..., Any],
    settled: Any,
    eventually: Any,
) -> Fleet:
    scheduler = start_scheduler()
    to = ("--in-process", "--scheduler", scheduler.address, "--replica-id")
    first = start_replica("--app", "variants:first", "--http", "0", *to, "first")
    second = start_replica("--app", "variants:second", *to, "second")
    with InferenceServerClient(scheduler.address) as client:
        eventually(lambda: client.is_model_ready("left") and client.is_model_ready("right"))
    settled(scheduler.address)
    return Fleet(
        scheduler,
        {"scheduler": scheduler.address, "first": first.address, "second": second.address},
        first.http,
    )


def numbers(*values: int, batched: bool = False) -> InferInput:
    array = np.array(values, np.int32)
    array = array.reshape(1, -1) if batched else array
    tensor = InferInput("x", list(array.shape), "INT32")
    tensor.set_data_from_numpy(array)
    return tensor


def status(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What a call fails with."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return str(caught.value.status()).removeprefix("StatusCode.")


def test_metadata_and_inference_of_every_model_at_every_door(fleet: Fleet) -> None:
    for door in DOORS:
        with fleet.client(door) as client:
            for name, decoupled in (("left", False), ("right", True)):
                assert client.is_model_ready(name), door
                metadata = client.get_model_metadata(name)
                assert (metadata.name, metadata.versions) == (name, ["1"])
                assert [(each.name, each.datatype) for each in metadata.inputs] == [("x", "INT32")]
                config = client.get_model_config(name).config
                assert config.model_transaction_policy.decoupled is decoupled
            assert client.infer("left", [numbers(1, 2)]).as_numpy("y").tolist() == [2, 3]
            assert client.infer("right", [numbers(7)]).as_numpy("y").tolist() == [7]
            assert not client.is_model_ready("nothing")
            for ask in (client.get_model_metadata, client.get_model_config):
                assert status(ask, "nothing") == "NOT_FOUND"
            assert status(client.get_inference_statistics, "nothing") == "INVALID_ARGUMENT"
    for door in DOORS:
        with fleet.client(door) as client:
            for name in ("left", "right"):
                (model,) = client.get_inference_statistics(name).model_stats
                assert model.inference_count == len(DOORS), door


def test_a_replicas_http_door_tells_of_the_models_of_the_fleet(fleet: Fleet) -> None:
    with http.InferenceServerClient(fleet.rest) as client:
        assert client.is_model_ready("right")
        assert client.get_model_metadata("right")["inputs"][0]["name"] == "x"
        assert client.get_model_config("right")["model_transaction_policy"]["decoupled"] is True
        tensor = http.InferInput("x", [2], "INT32")
        tensor.set_data_from_numpy(np.array([1, 2], np.int32))
        assert client.infer("left", [tensor]).as_numpy("y").tolist() == [2, 3]
        assert not client.is_model_ready("nothing")


def test_the_command_line_sends_any_request_to_any_door(fleet: Fleet) -> None:
    for door in DOORS:
        for name, printed in (("left", "y: 8\n"), ("right", "y: 7\n")):
            command = [
                sys.executable,
                "-m",
                "anyserve",
                "infer",
                fleet.addresses[door],
                name,
                "x=7",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_a_request_for_a_version_is_served_by_that_version_at_every_door(fleet: Fleet) -> None:
    for door in DOORS:
        with fleet.client(door) as client:
            inputs = [numbers(1, 2, batched=True)]
            for version in ("1", "2", "3"):
                result = client.infer("item", inputs, model_version=version)
                assert result.as_numpy("version").tolist() == [version.encode()]
                assert result.get_response().model_version == version
                assert client.is_model_ready("item", version)
                metadata = client.get_model_metadata("item", version)
                assert version in metadata.versions
                assert metadata.inputs[0].shape == [-1, 2]
                assert client.get_model_config("item", version).config.max_batch_size == 4
            assert client.infer("item", inputs).as_numpy("version")[0] in (b"1", b"2")
            assert not client.is_model_ready("item", "9")
            with pytest.raises(InferenceServerException) as caught:
                client.infer("item", inputs, model_version="9")
            assert "NOT_FOUND" in str(caught.value.status())
            for version in ("1", "2", "3"):
                assert f"version={version}, not 9" in caught.value.message(), door
            assert status(client.get_model_metadata, "item", "9") == "NOT_FOUND"
            for bad in ("latest", "1" * 20):
                asked = status(client.infer, "item", inputs, model_version=bad)
                assert asked == status(client.is_model_ready, "item", bad) == "INVALID_ARGUMENT"
    with fleet.client("scheduler") as client:
        assert client.get_model_metadata("item").versions == ["1", "2"]


def test_one_answer_of_a_decoupled_model_is_an_answer_to_a_unary_request_at_every_door(
    fleet: Fleet,
) -> None:
    for door in DOORS:
        with fleet.client(door) as client:
            assert client.infer("right", [numbers(5)]).as_numpy("y").tolist() == [5]
            for values in ((), (1, 2)):
                assert status(client.infer, "right", [numbers(*values)]) == "UNIMPLEMENTED"


def test_a_replica_answers_as_if_alone_while_the_scheduler_is_away(
    fleet: Fleet, eventually: Any
) -> None:
    with fleet.client("first") as client:
        fleet.scheduler.process.send_signal(signal.SIGSTOP)
        late = status(client.get_model_metadata, "right", client_timeout=0.3)
        assert late == "DEADLINE_EXCEEDED"
        assert client.get_model_metadata("left", client_timeout=10).name == "left"
        fleet.scheduler.kill()
        eventually(lambda: status(client.get_model_metadata, "right") == "NOT_FOUND")
        assert status(client.get_model_config, "right") == "NOT_FOUND"
        assert status(client.get_inference_statistics, "right") == "INVALID_ARGUMENT"
        assert not client.is_model_ready("right")
        assert client.is_model_ready("left")
        assert client.infer("left", [numbers(1)]).as_numpy("y").tolist() == [2]
