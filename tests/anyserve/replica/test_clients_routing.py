"""What routes a request: needs, versions, unknown parameters, sequences."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2
from tritonclient.utils import InferenceServerException

pb: Any = service_pb2
CODE = grpc.StatusCode
ONES = np.ones((1, 2), np.float32)


def request(model: str, **parameters: Any) -> Any:
    """A request for `add` or one of its kinds."""
    message = pb.ModelInferRequest(model_name=model)
    if model == "add":
        for name in ("A", "B"):
            message.inputs.add(name=name, datatype="FP32", shape=[1, 2])
            message.raw_input_contents.append(ONES.tobytes())
    for key, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(message.parameters[key], field[type(value)], value)
    return message


# Capabilities: the least powerful that satisfies wins.


def test_the_least_powerful_offer_that_satisfies_answers(raw: Any) -> None:
    answer = raw.call("ModelInfer", request("add"))
    assert (answer.model_name, answer.model_version) == ("add", "3")
    answer = raw.call("ModelInfer", request("add.heavy"))
    assert (answer.model_name, answer.model_version) == ("add.heavy", "1")


@pytest.mark.parametrize(
    "needs, served",
    [
        ({"need.max_context": 2048}, "add"),
        ({"need.max_context": 2049}, "add.heavy"),
        ({"need.max_context": "4096"}, "add.heavy"),
        ({"need.max_context": 2048.5}, "add.heavy"),
        ({"need.model": "adder"}, "add"),
        ({"need.model": "adder", "need.max_context": 65536}, "add.heavy"),
    ],
)
def test_parameters_say_what_a_request_needs(raw: Any, needs: dict[str, Any], served: str) -> None:
    assert raw.call("ModelInfer", request("add", **needs)).model_name == served


@pytest.mark.parametrize(
    "needs, code, words",
    [
        ({"need.max_context": 65537}, CODE.NOT_FOUND, "max_context"),
        ({"need.model": "other"}, CODE.NOT_FOUND, "model"),
        ({"need.colour": "red"}, CODE.NOT_FOUND, "colour"),
        ({"need.max_context": "many"}, CODE.INVALID_ARGUMENT, "max_context"),
        ({"need.max_context": "nan"}, CODE.INVALID_ARGUMENT, "max_context"),
        ({"need.max_context": float("nan")}, CODE.INVALID_ARGUMENT, "max_context"),
    ],
)
def test_a_need_that_nothing_satisfies_is_refused_in_words(
    raw: Any, needs: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    refusal = raw.refusal("ModelInfer", request("add", **needs))
    assert refusal.code is code
    assert words in refusal.message


def test_metadata_says_the_same_and_parameters_win(raw: Any) -> None:
    metadata = [("anyserve-need-max-context", "4096"), ("anyserve-need-model", "adder")]
    answer = raw.call("ModelInfer", request("add"), metadata=metadata)
    assert answer.model_name == "add.heavy"
    small = request("add", **{"need.max_context": 1})
    assert raw.call("ModelInfer", small, metadata=metadata).model_name == "add"
    for bad, code in ((["x"], CODE.INVALID_ARGUMENT), (["70000"], CODE.NOT_FOUND)):
        refusal = raw.refusal(
            "ModelInfer", request("add"), metadata=[("anyserve-need-max-context", *bad)]
        )
        assert refusal.code is code


def test_tritonclient_sends_needs_in_parameters_and_headers(triton: Any) -> None:
    inputs = []
    for name in ("A", "B"):
        tensor = InferInput(name, [1, 2], "FP32")
        tensor.set_data_from_numpy(ONES)
        inputs.append(tensor)
    for options in (
        {"parameters": {"need.max_context": 4096}},
        {"headers": {"anyserve-need-max-context": "4096"}},
    ):
        answer = triton.infer("add", inputs, client_timeout=20, **options).get_response()
        assert answer.model_name == "add.heavy"


def test_the_version_asked_for_is_that_of_the_offer_that_serves(raw: Any) -> None:
    message = request("add", **{"need.max_context": 4096})
    message.model_version = "1"
    assert raw.call("ModelInfer", message).model_version == "1"
    message.model_version = "3"
    refusal = raw.refusal("ModelInfer", message)
    assert refusal.code is CODE.NOT_FOUND
    assert "add.heavy has version=1, not 3" in refusal.message
    message = request("add")
    message.model_version = "1"
    assert raw.call("ModelInfer", message).model_name == "add.heavy"


# 12. Parameters that nobody knows.


def test_unknown_parameters_of_every_type_reach_the_handler(raw: Any) -> None:
    values = {"a": True, "b": -(2**63), "c": "text", "d": 0.5, "priority": 3, "ümlaut": ""}
    message = request("echo", **values)
    message.parameters["e"].uint64_param = 2**64 - 1
    message.inputs.add(name="x", datatype="INT8", shape=[0]).parameters["of"].string_param = "x"
    message.outputs.add(name="x").parameters["classification"].int64_param = 3
    answer = raw.call("ModelInfer", message)
    choice = {key: value.WhichOneof("parameter_choice") for key, value in answer.parameters.items()}
    assert {key: getattr(answer.parameters[key], choice[key]) for key in choice} == {
        **values,
        "e": 2**64 - 1,
    }


def test_sequence_parameters_mean_nothing_to_a_handler_without_sequences(triton: Any) -> None:
    result = triton.infer("echo", [], sequence_id=5, sequence_end=True, client_timeout=20)
    assert result.get_response().parameters["sequence_id"].int64_param == 5


# 12. Sequences.


def accumulate(client: Any, identity: int | str, value: int, **flags: bool) -> tuple[int, int]:
    """The sum so far, and the worker that holds it."""
    tensor = InferInput("INPUT", [1], "INT32")
    tensor.set_data_from_numpy(np.array([value], np.int32))
    result = client.infer("accumulate", [tensor], sequence_id=identity, client_timeout=20, **flags)
    return int(result.as_numpy("OUTPUT")[0]), int(result.as_numpy("pid")[0])


@pytest.mark.parametrize("identity", [1, -7, 2**63 - 1, "a string", "1", "ü"])
def test_an_id_of_a_sequence_is_a_number_or_a_string(triton: Any, identity: int | str) -> None:
    assert accumulate(triton, identity, 1, sequence_start=True)[0] == 1
    assert accumulate(triton, identity, 2)[0] == 3
    assert accumulate(triton, identity, 3, sequence_end=True)[0] == 6


def test_a_number_and_the_string_of_it_are_two_sequences(triton: Any) -> None:
    assert accumulate(triton, 1, 10, sequence_start=True)[0] == 10
    assert accumulate(triton, "1", 20, sequence_start=True)[0] == 20
    assert accumulate(triton, 1, 1, sequence_end=True)[0] == 11
    assert accumulate(triton, "1", 1, sequence_end=True)[0] == 21


def test_one_request_may_be_a_whole_sequence(triton: Any) -> None:
    for _ in range(2):
        assert accumulate(triton, 9, 5, sequence_start=True, sequence_end=True)[0] == 5


def refused(call: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert "sequence" in caught.value.message()
    return caught.value.status().removeprefix("StatusCode.")


def test_a_missing_start_and_what_comes_after_the_end_are_invalid(triton: Any) -> None:
    assert refused(lambda: accumulate(triton, 77, 1)) == "INVALID_ARGUMENT"
    accumulate(triton, 77, 1, sequence_start=True, sequence_end=True)
    assert refused(lambda: accumulate(triton, 77, 1)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "field, value",
    [
        (None, None),
        ("int64_param", 0),
        ("string_param", ""),
        ("bool_param", True),
        ("double_param", 1.0),
    ],
)
def test_no_id_or_one_that_is_none_is_invalid(raw: Any, field: str | None, value: Any) -> None:
    message = pb.ModelInferRequest(model_name="accumulate")
    message.parameters["sequence_start"].bool_param = True
    if field is not None:
        setattr(message.parameters["sequence_id"], field, value)
    refusal = raw.refusal("ModelInfer", message)
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert "sequence_id" in refusal.message


def test_a_sequence_stays_with_one_worker_of_several(start_replica: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--workers", "2")
    with InferenceServerClient(live.address) as client:
        workers: dict[int, set[int]] = {identity: set() for identity in range(1, 9)}
        for turn in range(4):
            for identity, seen in workers.items():
                total, pid = accumulate(
                    client, identity, 1, sequence_start=turn == 0, sequence_end=turn == 3
                )
                assert total == turn + 1
                seen.add(pid)
    assert all(len(seen) == 1 for seen in workers.values())
    assert len(set.union(*workers.values())) == 2


def test_requests_of_a_sequence_on_a_stream_run_in_the_order_sent(raw: Any) -> None:
    messages = []
    for number in range(1, 51):
        message = pb.ModelInferRequest(model_name="accumulate", id=str(number))
        message.inputs.add(name="INPUT", datatype="INT32", shape=[1])
        message.raw_input_contents.append(np.array([number], np.int32).tobytes())
        message.outputs.add(name="OUTPUT")
        message.parameters["sequence_id"].string_param = "streamed"
        message.parameters["sequence_start"].bool_param = number == 1
        message.parameters["sequence_end"].bool_param = number == 50
        messages.append(message)
    answers = list(raw.stub.ModelStreamInfer(iter(messages), timeout=20))
    assert [answer.error_message for answer in answers] == [""] * 50
    totals = [np.frombuffer(a.infer_response.raw_output_contents[0], np.int32)[0] for a in answers]
    assert totals == [n * (n + 1) // 2 for n in range(1, 51)]
