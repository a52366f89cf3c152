"""Model control: the index, loads and unloads, in Triton's form and in KServe's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

pb: Any = service_pb2
Tensor = pb.ModelInferRequest.InferInputTensor
CODE = grpc.StatusCode


def index(raw: Any, **request: Any) -> dict[str, tuple[str, str]]:
    """State and reason of every model, by name."""
    models = raw.call("RepositoryIndex", pb.RepositoryIndexRequest(**request)).models
    assert len({model.name for model in models}) == len(models)
    return {model.name: (model.state, model.reason) for model in models}


def hold_request(file: Path) -> Any:
    path = str(file).encode()
    return pb.ModelInferRequest(
        model_name="hold",
        inputs=[
            Tensor(name="file", datatype="BYTES", shape=[1]),
            Tensor(name="first", datatype="BOOL", shape=[1]),
        ],
        raw_input_contents=[len(path).to_bytes(4, "little") + path, b"\x01"],
    )


class States:
    """Hears of a capability's health, which changes with its state."""

    def __init__(self, raw: Any, name: str) -> None:
        # The request has one field, a string, and the answer one, an enumeration.
        watch = raw.channel.unary_stream("/grpc.health.v1.Health/Watch")
        self._call = watch(bytes([10, len(name)]) + name.encode(), timeout=60)

    def next(self) -> bool:
        """Whether it serves, when that has changed."""
        return bool(next(self._call) == b"\x08\x01")

    def close(self) -> None:
        self._call.cancel()


# 3. States, and what becomes of requests.


def test_tritonclient_lists_unloads_and_loads(triton: Any) -> None:
    def states() -> dict[str, str]:
        models = triton.get_model_repository_index(client_timeout=20).models
        return {model.name: model.state for model in models}

    assert states()["fragile"] == "READY"
    triton.unload_model("fragile", client_timeout=20)
    assert not triton.is_model_ready("fragile", client_timeout=20)
    assert states()["fragile"] in ("UNLOADING", "UNAVAILABLE")
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("fragile", [], client_timeout=20)
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    triton.load_model("fragile", client_timeout=20)
    assert states()["fragile"] == "READY"
    assert triton.is_model_ready("fragile", client_timeout=20)


def test_a_model_in_use_is_unloading_until_its_requests_have_ended(
    start_replica: Any, connect: Any, tmp_path: Path
) -> None:
    raw = connect(start_replica("--app", "behaviours:app", "--caps", "hold,echo").address)
    held = raw.stub.ModelStreamInfer(iter([hold_request(tmp_path / "held")]), timeout=60)
    assert next(held).infer_response.outputs[0].name == "started"
    raw.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="hold"))
    assert index(raw)["hold"] == ("UNLOADING", "it is being unloaded")
    refusal = raw.refusal("ModelInfer", hold_request(tmp_path / "refused"))
    assert refusal.code is CODE.NOT_FOUND
    assert "echo" in refusal.message
    assert raw.refusal("ModelMetadata", pb.ModelMetadataRequest(name="hold")).code is CODE.NOT_FOUND
    assert not raw.call("ModelReady", pb.ModelReadyRequest(name="hold")).ready

    loaded = threading.Event()

    def load() -> None:
        raw.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="hold"))
        loaded.set()

    # A load waits for the unload before it, which is over when the request has ended.
    loader = threading.Thread(target=load)
    loader.start()
    assert index(raw)["hold"][0] == "UNLOADING"
    held.cancel()
    assert loaded.wait(20)
    loader.join()
    assert index(raw)["hold"] == ("READY", "")


def test_what_was_unloaded_is_unavailable_and_not_in_the_ready_index(
    start_replica: Any, connect: Any
) -> None:
    raw = connect(start_replica("--app", "behaviours:app", "--caps", "echo,about").address)
    assert {name for name, (state, _) in index(raw).items() if state == "READY"} == {
        "echo",
        "about",
    }
    assert index(raw)["sleep"] == ("UNAVAILABLE", "not loaded")
    assert set(index(raw, ready=True)) == {"echo", "about"}
    raw.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="about"))
    # The next unload, of the last of the app, is answered when this one is done.
    raw.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="echo"))
    assert index(raw)["about"] == ("UNAVAILABLE", "it was unloaded")
    assert set(index(raw, ready=True)) == set()
    refusal = raw.refusal("ModelInfer", pb.ModelInferRequest(model_name="echo"))
    assert refusal.code is CODE.NOT_FOUND
    raw.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="echo"))
    assert index(raw)["echo"] == ("READY", "")
    raw.call("ModelInfer", pb.ModelInferRequest(model_name="echo"))


def test_a_load_that_fails_is_internal_and_says_why(start_replica: Any, connect: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--caps", "echo", "--model", "/nowhere.gguf")
    raw = connect(live.address)
    refusal = raw.refusal(
        "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="decode"), timeout=60
    )
    assert refusal.code is CODE.INTERNAL
    assert "/nowhere.gguf" in refusal.message
    state, reason = index(raw)["decode"]
    assert state == "UNAVAILABLE"
    assert "/nowhere.gguf" in reason
    assert "Traceback" not in refusal.message
    raw.call("ModelInfer", pb.ModelInferRequest(model_name="echo"))


def test_load_and_unload_of_what_is_so_already_change_nothing(raw: Any) -> None:
    raw.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="echo"))
    assert index(raw)["echo"] == ("READY", "")


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_control_of_an_unknown_model_is_not_found(raw: Any, method: str) -> None:
    refusal = raw.refusal(method, getattr(pb, f"{method}Request")(model_name="nothing"))
    assert refusal.code is CODE.NOT_FOUND
    assert "'nothing'" in refusal.message


def test_load_parameters_are_refused_in_words(triton: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.load_model("echo", config='{"max_batch_size": 8}', client_timeout=20)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "parameters" in caught.value.message()


# 11. Two forms of the request.


def test_kserve_s_load_and_unload_name_the_model_in_their_first_field(raw: Any) -> None:
    # KServe's messages: {string model_name = 1} to {string model_name = 1; bool is_... = 2}.
    name = b"\x0a\x07fragile"
    service = "/inference.GRPCInferenceService"
    unload = raw.channel.unary_unary(f"{service}/RepositoryModelUnload")
    load = raw.channel.unary_unary(f"{service}/RepositoryModelLoad")
    assert unload(name, timeout=20) == name + b"\x10\x01"
    assert index(raw)["fragile"][0] in ("UNLOADING", "UNAVAILABLE")
    assert load(name, timeout=20) == name + b"\x10\x01"
    assert index(raw)["fragile"] == ("READY", "")


def test_triton_s_second_field_counts_where_both_are_there(raw: Any) -> None:
    request = pb.RepositoryModelLoadRequest(repository_name="nothing", model_name="echo")
    raw.call("RepositoryModelLoad", request)


# 30. Long names.

METHODS_WITH_NAMES = {
    "RepositoryModelLoad": "model_name",
    "RepositoryModelUnload": "model_name",
    "ModelInfer": "model_name",
    "ModelReady": "name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelStatistics": "name",
}


@pytest.mark.parametrize("method, field", METHODS_WITH_NAMES.items())
@pytest.mark.parametrize(
    "name", ["n" * 256, "ü" * 200, "a/" * 3000, "n" * 1_000_000], ids=["256", "ü", "a/", "1M"]
)
def test_a_name_that_is_too_long_is_refused_and_the_server_lives(
    raw: Any, method: str, field: str, name: str
) -> None:
    refusal = raw.refusal(method, getattr(pb, f"{method}Request")(**{field: name}))
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert "model name" in refusal.message
    assert raw.call("ServerLive", pb.ServerLiveRequest()).live


def test_a_name_as_long_as_may_be_is_merely_unknown(raw: Any) -> None:
    request = pb.RepositoryModelLoadRequest(model_name="n" * 255)
    assert raw.refusal("RepositoryModelLoad", request).code is CODE.NOT_FOUND
