"""A replica with capabilities on demand: what is known of them before they are loaded."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

pb: Any = service_pb2
CODE = grpc.StatusCode
UPPER = ("--app", "examples.on_demand:upper", "--on-demand", "upper")
ECHO = ("--app", "examples.echo:app", "--caps", "echo")


def index(raw: Any) -> dict[str, tuple[str, str]]:
    """State and reason of every model, by name."""
    models = raw.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
    return {model.name: (model.state, model.reason) for model in models}


def load(raw: Any, name: str) -> None:
    raw.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))


@pytest.mark.parametrize("where", [(), ("--in-process",)], ids=["workers", "in process"])
def test_what_is_on_demand_is_known_and_not_loaded_until_it_is_asked_for(
    start_replica: Any, connect: Any, request_of: Any, workers_of: Any, where: tuple[str, ...]
) -> None:
    live = start_replica(*UPPER, *ECHO, *where)
    raw = connect(live.address)
    request = request_of("upper", text=["hello"])
    assert workers_of(live).keys() == (set() if where else {"echo-0"})
    assert index(raw)["upper"] == ("UNAVAILABLE", "it is on demand, and not loaded")
    assert not raw.call("ModelReady", pb.ModelReadyRequest(name="upper")).ready
    metadata = raw.call("ModelMetadata", pb.ModelMetadataRequest(name="upper"))
    assert [tensor.name for tensor in metadata.inputs] == ["text"]
    assert raw.call("ModelConfig", pb.ModelConfigRequest(name="upper")).config.name == "upper"
    refusal = raw.refusal("ModelInfer", request)
    assert (refusal.code, refusal.message) == (
        CODE.NOT_FOUND,
        "upper version 1 is on demand, and not loaded: RepositoryModelLoad loads it",
    )
    load(raw, "upper")
    assert raw.call("ModelInfer", request).raw_output_contents == [b"\x05\0\0\0HELLO"]
    assert index(raw)["upper"] == ("READY", "")
    raw.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="upper"))
    assert raw.refusal("ModelInfer", request).code is CODE.NOT_FOUND
    load(raw, "upper")
    assert raw.call("ModelInfer", request).model_name == "upper"
    assert live.stop() == 0


def test_an_app_may_have_some_on_demand_and_some_not(
    start_replica: Any, connect: Any, request_of: Any
) -> None:
    raw = connect(start_replica("--app", "behaviours:app", "--on-demand", "about,add").address)
    states = index(raw)
    assert {name for name, (state, _) in states.items() if state != "READY"} == {
        *("about", "add", "decode", "embedding")
    }
    load(raw, "about")
    assert index(raw)["about"] == ("READY", "")
    assert raw.call("ModelInfer", request_of("about")).model_name == "about"


def test_what_is_built_in_says_what_it_offers_before_it_is_loaded(
    start_replica: Any, connect: Any
) -> None:
    raw = connect(start_replica(*ECHO, "--on-demand", "decode").address)
    metadata = raw.call("ModelMetadata", pb.ModelMetadataRequest(name="decode"))
    assert "text_input" in {tensor.name for tensor in metadata.inputs}
    assert index(raw)["decode"][0] == "UNAVAILABLE"
    refusal = raw.refusal("ModelMetadata", pb.ModelMetadataRequest(name="decode", version="7"))
    assert refusal.code is CODE.NOT_FOUND


def test_an_app_that_fails_to_load_on_demand_costs_nothing_else(
    start_replica: Any, connect: Any, request_of: Any
) -> None:
    live = start_replica("--app", "broken:unloadable", "--on-demand", "echo")
    raw = connect(live.address)
    for _ in range(2):
        refusal = raw.refusal(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="echo")
        )
        assert refusal.code is CODE.INTERNAL
        assert "weights.bin: no such file" in refusal.message
    state, reason = index(raw)["echo"]
    assert state == "UNAVAILABLE"
    assert "weights.bin: no such file" in reason
    assert live.stop() == 0


@pytest.mark.parametrize(
    "options, status, message",
    [
        (
            ["--caps", "decode", "--on-demand", "decode,embedding"],
            2,
            "--caps and --on-demand both name decode",
        ),
        (
            ["--on-demand", "nonsense"],
            1,
            "unknown capability nonsense; there is: decode, embedding",
        ),
        (
            ["--app", "unimportable:app", "--on-demand", "echo"],
            1,
            "app 'unimportable:app' can't be imported: RuntimeError: broken on purpose",
        ),
    ],
    ids=["named twice", "unknown", "not importable"],
)
def test_what_makes_no_sense_on_demand_is_said_in_one_line(
    launch: Any, options: list[str], status: int, message: str
) -> None:
    process = launch(*options)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, f"anyserve: {message}\n")
