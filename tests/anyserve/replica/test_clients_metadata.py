"""What clients read of a server and its models: metadata, configuration, statistics, settings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferInput, model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

import anyserve

pb: Any = service_pb2
config_pb: Any = model_config_pb2
Tensor = pb.ModelInferRequest.InferInputTensor


def infer_batched(raw: Any, batch: int) -> None:
    request = pb.ModelInferRequest(
        model_name="batched",
        inputs=[Tensor(name="x", datatype="INT32", shape=[batch, 2])],
        raw_input_contents=[bytes(8 * batch)],
    )
    raw.call("ModelInfer", request)


def statistics(triton: Any, name: str) -> Any:
    (found,) = triton.get_inference_statistics(name, client_timeout=20).model_stats
    return found


# 7. The server.


def test_the_server_says_who_it_is_and_what_it_speaks(triton: Any) -> None:
    metadata = triton.get_server_metadata(client_timeout=20)
    assert (metadata.name, metadata.version) == ("anyserve", anyserve.__version__)
    assert {"statistics", "system_shared_memory", "model_repository"} <= set(metadata.extensions)
    assert "cuda_shared_memory" not in metadata.extensions
    assert triton.is_server_live(client_timeout=20)
    assert triton.is_server_ready(client_timeout=20)
    assert triton.is_model_ready("add", client_timeout=20)
    assert triton.is_model_ready("add", "3", client_timeout=20)


def test_the_server_may_be_called_as_example_clients_insist(
    start_replica: Any, connect: Any
) -> None:
    live = start_replica("--app", "examples.echo:app", "--server-name", "triton")
    answer = connect(live.address).call("ServerMetadata", pb.ServerMetadataRequest())
    assert answer.name == "triton"


# 8. Models, as load tools read them before they start.


def test_metadata_has_the_batch_dimension_and_the_configuration_leaves_it_out(triton: Any) -> None:
    metadata = triton.get_model_metadata("batched", client_timeout=20)
    config = triton.get_model_config("batched", client_timeout=20).config
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "INT32", [-1, 2])
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("y", "INT32", [-1, 2])
    ]
    assert config.max_batch_size == 4
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("x", config_pb.TYPE_INT32, [2])
    ]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("y", config_pb.TYPE_INT32, [2])
    ]


def test_strings_are_bytes_in_the_metadata_and_strings_in_the_configuration(triton: Any) -> None:
    (tensor,) = triton.get_model_metadata("lengths", client_timeout=20).inputs
    assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [-1])
    (tensor,) = triton.get_model_config("lengths", client_timeout=20).config.input
    assert (tensor.data_type, list(tensor.dims)) == (config_pb.TYPE_STRING, [-1])


def test_the_configuration_says_what_is_optional_decoupled_and_a_sequence(triton: Any) -> None:
    add, repeat, accumulate = (
        triton.get_model_config(name, client_timeout=20).config
        for name in ("add", "repeat", "accumulate")
    )
    assert {tensor.name: tensor.optional for tensor in add.input} == {
        "A": False,
        "B": False,
        "scale": True,
    }
    assert add.max_batch_size == 0
    assert not add.model_transaction_policy.decoupled
    assert repeat.model_transaction_policy.decoupled
    assert not repeat.HasField("sequence_batching")
    assert accumulate.sequence_batching.max_sequence_idle_microseconds == 30_000_000
    assert add.parameters["model"].string_value == "adder"
    assert add.parameters["max_context"].string_value == "2048"


# 18. Statistics.


def test_statistics_count_batches_and_requests_and_measure_in_their_units(
    raw: Any, triton: Any
) -> None:
    before = statistics(triton, "batched")
    began = time.time_ns()
    for batch in (1, 3, 4):
        infer_batched(raw, batch)
    elapsed = time.time_ns() - began
    after = statistics(triton, "batched")
    assert (after.name, after.version) == ("batched", "1")
    assert after.inference_count - before.inference_count == 8
    assert after.execution_count - before.execution_count == 3
    parts = {}
    for part in ("success", "queue", "compute_infer"):
        new, old = getattr(after.inference_stats, part), getattr(before.inference_stats, part)
        assert new.count - old.count == 3
        parts[part] = new.ns - old.ns
    assert 0 < parts["compute_infer"] <= parts["success"] <= elapsed
    assert began // 10**6 <= after.last_inference <= time.time_ns() // 10**6
    assert after.inference_stats.fail.count == before.inference_stats.fail.count


def test_statistics_count_what_failed_apart(raw: Any, triton: Any) -> None:
    before = statistics(triton, "batched")
    with pytest.raises(grpc.RpcError):
        infer_batched(raw, 5)
    after = statistics(triton, "batched")
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.success.count == before.inference_stats.success.count
    assert after.inference_count == before.inference_count
    assert after.last_inference == before.last_inference


def test_statistics_without_a_name_are_those_of_all_models(triton: Any) -> None:
    names = [m.name for m in triton.get_inference_statistics(client_timeout=20).model_stats]
    assert {"add", "add.heavy", "batched", "echo"} <= set(names)
    assert len(names) == len(set(names))
    (one,) = triton.get_inference_statistics("add", "3", client_timeout=20).model_stats
    assert (one.name, one.version) == ("add", "3")


# Settings.


@pytest.fixture
def log_settings(triton: Any) -> Iterator[Any]:
    """The settings in force, which are put back."""
    before = triton.get_log_settings(client_timeout=20).settings
    yield before
    triton.update_log_settings(
        {"log_verbose_level": 0, "log_info": True, "log_warning": True, "log_error": True},
        client_timeout=20,
    )


def test_log_settings_are_read_and_the_level_is_changed(triton: Any, log_settings: Any) -> None:
    assert log_settings["log_info"].bool_param is True
    assert log_settings["log_verbose_level"].uint32_param == 0
    quiet = triton.update_log_settings({"log_info": False}, client_timeout=20).settings
    assert [quiet[key].bool_param for key in ("log_info", "log_warning", "log_error")] == [
        False,
        True,
        True,
    ]
    verbose = triton.update_log_settings({"log_verbose_level": 1}, client_timeout=20).settings
    assert verbose["log_verbose_level"].uint32_param == 1
    assert triton.get_log_settings(client_timeout=20).settings == verbose


@pytest.mark.parametrize(
    "settings, status",
    [
        ({"log_file": "/tmp/elsewhere"}, "UNIMPLEMENTED"),
        ({"log_format": "ISO8601"}, "UNIMPLEMENTED"),
        ({"log_colour": True}, "INVALID_ARGUMENT"),
        ({"log_info": None}, "INVALID_ARGUMENT"),
    ],
)
def test_log_settings_that_can_t_be_are_refused(
    triton: Any, log_settings: Any, settings: dict[str, Any], status: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton.update_log_settings({"log_warning": False, **settings}, client_timeout=20)
    assert caught.value.status() == f"StatusCode.{status}"
    assert next(iter(settings)) in caught.value.message()
    assert triton.get_log_settings(client_timeout=20).settings == log_settings


def test_a_log_setting_of_another_type_is_refused(raw: Any, log_settings: Any) -> None:
    request = pb.LogSettingsRequest()
    request.settings["log_info"].uint32_param = 0
    refusal = raw.refusal("LogSettings", request)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "log_info" in refusal.message


def test_trace_settings_are_read_and_stay_off(triton: Any) -> None:
    for model in (None, "add"):
        settings = triton.get_trace_settings(model, client_timeout=20).settings
        assert list(settings["trace_level"].value) == ["OFF"]
    same = triton.update_trace_settings(
        settings={"trace_level": ["OFF"], "trace_rate": None}, client_timeout=20
    )
    assert list(same.settings["trace_level"].value) == ["OFF"]
    for changed, status in (
        ({"trace_level": ["TIMESTAMPS"]}, "UNIMPLEMENTED"),
        ({"trace_colour": "red"}, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            triton.update_trace_settings(settings=changed, client_timeout=20)
        assert caught.value.status() == f"StatusCode.{status}"


def test_tritonclient_infers_with_what_the_metadata_says(triton: Any) -> None:
    metadata = triton.get_model_metadata("batched", "1", client_timeout=20)
    (described,) = metadata.inputs
    tensor = InferInput(described.name, [2, *described.shape[1:]], described.datatype)
    tensor.set_data_from_numpy(np.ones((2, 2), np.int32))
    result = triton.infer("batched", [tensor], client_timeout=20)
    assert result.as_numpy(metadata.outputs[0].name).tolist() == [[2, 2], [2, 2]]
