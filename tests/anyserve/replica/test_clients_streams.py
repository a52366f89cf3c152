"""ModelStreamInfer as tritonclient's `start_stream` and raw grpcio use it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2
from tritonclient.utils import InferenceServerException

pb: Any = service_pb2
FINAL = "triton_final_response"
EMPTY_FINAL = "triton_enable_empty_final_response"
CODE = grpc.StatusCode


class Requests:
    """The client's side of a stream: requests that are sent as they are put, until the end."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def put(self, request: Any) -> None:
        self._queue.put(request)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)


@contextmanager
def open_stream(raw: Any) -> Iterator[tuple[Requests, Any]]:
    """A stream, and the call that gives its responses."""
    requests = Requests()
    call = raw.stub.ModelStreamInfer(iter(requests), timeout=30)
    try:
        yield requests, call
    finally:
        requests.end()
        call.cancel()


def request(model: str, identity: str = "", **inputs: Any) -> Any:
    """A ModelInferRequest of numpy arrays and strings."""
    message = pb.ModelInferRequest(model_name=model, id=identity)
    for name, value in inputs.items():
        array = np.asarray(value)
        tensor = InferInput(name, list(array.shape), DATATYPES[array.dtype.kind])
        tensor.set_data_from_numpy(array)
        message.inputs.append(tensor._get_tensor())
        message.raw_input_contents.append(tensor._get_content())
    return message


DATATYPES = {"i": "INT32", "f": "FP32", "O": "BYTES"}


def repeat(identity: str, values: list[int], *, pause: float = 0, final: bool = False) -> Any:
    message = request(
        "repeat",
        identity,
        IN=np.array(values, np.int32),
        pause=np.array([pause], np.float32),
    )
    if final:
        message.parameters[EMPTY_FINAL].bool_param = True
    return message


def sleep(identity: str, seconds: float) -> Any:
    return request("sleep", identity, seconds=np.array([seconds], np.float32))


def hold(file: Path) -> Any:
    """A request that gives one response and then waits for ever."""
    return request(
        "hold",
        "held",
        file=np.array([str(file).encode()], np.object_),
        first=np.array([1], np.int32),
    )


def summary(answer: Any) -> tuple[str, list[int], bool | None]:
    """A response's id, its elements as INT32 and its flag."""
    assert not answer.error_message
    response = answer.infer_response
    values = [int(np.frombuffer(c, np.int32)[0]) for c in response.raw_output_contents]
    flag = response.parameters[FINAL].bool_param if FINAL in response.parameters else None
    return response.id, values, flag


# 14. Errors.


def test_an_error_ends_its_request_and_not_the_stream(raw: Any) -> None:
    with open_stream(raw) as (requests, answers):
        for identity, bad in (
            ("unknown", request("nothing", "unknown")),
            ("empty", request("", "empty")),
            ("invalid", request("add", "invalid", A=np.zeros((1, 2), np.float32))),
            ("raised", request("fail", "raised", kind=np.array([b"declared"], np.object_))),
            ("late", request("repeat", "late", IN=np.zeros((2, 2), np.int32))),
        ):
            requests.put(bad)
            answer = next(answers)
            assert answer.error_message
            assert answer.infer_response.id == identity
            assert not answer.infer_response.outputs
        requests.put(repeat("good", [1]))
        assert summary(next(answers)) == ("good", [1], False)
        requests.end()
        assert list(answers) == []
        assert answers.code() is CODE.OK


def test_tritonclient_hears_of_errors_with_the_request_s_id(replica: Any) -> None:
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(replica.address) as client:
        client.start_stream(lambda result, error: heard.put((result, error)), stream_timeout=30)
        client.async_stream_infer("nothing", [], request_id="bad")
        result, error = heard.get(timeout=20)
        assert isinstance(error, InferenceServerException)
        assert "'nothing'" in error.message()
        client.async_stream_infer("echo", [], request_id="good")
        result, error = heard.get(timeout=20)
        assert error is None
        assert result.get_response().id == "good"
        client.stop_stream()
    assert heard.empty()


def test_a_message_that_is_no_request_ends_with_an_error_on_the_stream(raw: Any) -> None:
    method = raw.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    good = request("echo", "good").SerializeToString()
    answers = list(method(iter([b"\xff\xff\xff", good]), timeout=20))
    assert "ModelInferRequest" in answers[0].error_message
    assert answers[1].infer_response.id == "good"


# 15. Handlers that answer once.


def test_requests_that_are_pipelined_are_answered_in_order(raw: Any) -> None:
    # More than a stream may have in flight, which none of them notices.
    identities = [f"{number}" for number in range(1500)]
    with open_stream(raw) as (requests, answers):
        requests.put(sleep("slow", 0.2))
        for identity in identities:
            requests.put(request("echo", identity, INPUT=np.array([1], np.int32)))
        requests.put(request("nothing", "error"))
        requests.put(request("echo", "last"))
        requests.end()
        found = list(answers)
    assert [answer.infer_response.id for answer in found] == [
        "slow",
        *identities,
        "error",
        "last",
    ]
    assert found[-2].error_message
    for answer in (found[0], *found[1:-2], found[-1]):
        assert answer.infer_response.parameters[FINAL].bool_param is True


def test_the_flag_comes_beside_the_handler_s_own_parameters(raw: Any) -> None:
    message = request("echo", "own")
    message.parameters["mine"].string_param = "kept"
    message.parameters[FINAL].bool_param = False
    (answer,) = raw.stub.ModelStreamInfer(iter([message]), timeout=20)
    parameters = answer.infer_response.parameters
    assert parameters["mine"].string_param == "kept"
    assert parameters[FINAL].bool_param is True


def test_a_unary_answer_has_no_flag(raw: Any) -> None:
    answer = raw.call("ModelInfer", request("echo"))
    assert FINAL not in answer.parameters


# 16. Decoupled handlers.


@pytest.mark.parametrize("values", [[], [7], [7, 8, 9]])
@pytest.mark.parametrize("final", [False, True])
def test_a_decoupled_request_has_as_many_responses_as_it_gives_and_a_final_one_if_asked(
    raw: Any, values: list[int], final: bool
) -> None:
    answers = list(raw.stub.ModelStreamInfer(iter([repeat("r", values, final=final)]), timeout=20))
    expected: list[tuple[str, list[int], bool | None]] = [("r", [v], False) for v in values]
    if final:
        expected.append(("r", [], True))
        last = answers[-1].infer_response
        assert (last.model_name, last.model_version) == ("repeat", "1")
        assert not last.outputs
    assert [summary(answer) for answer in answers] == expected


def test_responses_come_while_the_handler_still_runs(raw: Any, tmp_path: Path) -> None:
    with open_stream(raw) as (requests, answers):
        requests.put(hold(tmp_path / "held"))
        assert next(answers).infer_response.outputs[0].name == "started"
        assert (tmp_path / "held").exists()


def test_a_fast_request_overtakes_a_slow_one(raw: Any, tmp_path: Path) -> None:
    with open_stream(raw) as (requests, answers):
        requests.put(hold(tmp_path / "held"))
        assert next(answers).infer_response.id == "held"
        requests.put(repeat("fast", [1, 2], final=True))
        assert [summary(next(answers)) for _ in range(3)] == [
            ("fast", [1], False),
            ("fast", [2], False),
            ("fast", [], True),
        ]
        requests.put(request("echo", "once"))
        assert next(answers).infer_response.id == "once"


def test_the_responses_of_many_decoupled_requests_keep_their_own_order(raw: Any) -> None:
    messages = [repeat(f"{n}", list(range(20)), final=True) for n in range(50)]
    got: dict[str, list[tuple[list[int], bool | None]]] = {}
    for answer in raw.stub.ModelStreamInfer(iter(messages), timeout=30):
        identity, values, flag = summary(answer)
        got.setdefault(identity, []).append((values, flag))
    expected = [*(([value], False) for value in range(20)), ([], True)]
    assert got == {f"{n}": expected for n in range(50)}


def test_an_output_that_a_decoupled_handler_does_not_give_is_its_request_s_error(raw: Any) -> None:
    message = request("blocking_stream", "n", n=np.array([2], np.int32))
    message.outputs.add(name="number")
    answers = list(raw.stub.ModelStreamInfer(iter([message]), timeout=20))
    assert [bool(answer.error_message) for answer in answers] == [False, False]
    message.outputs.add(name="not given")
    (answer,) = raw.stub.ModelStreamInfer(iter([message]), timeout=20)
    assert "'not given'" in answer.error_message
    assert answer.infer_response.id == "n"


def test_tritonclient_streams_decoupled_responses(replica: Any) -> None:
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    tensor = InferInput("IN", [3], "INT32")
    tensor.set_data_from_numpy(np.array([4, 5, 6], np.int32))
    with InferenceServerClient(replica.address) as client:
        client.start_stream(lambda result, error: heard.put((result, error)), stream_timeout=30)
        client.async_stream_infer(
            "repeat", [tensor], request_id="t", enable_empty_final_response=True
        )
        got = []
        while True:
            result, error = heard.get(timeout=20)
            assert error is None
            response = result.get_response()
            assert response.id == "t"
            if response.parameters[FINAL].bool_param:
                break
            got += result.as_numpy("OUT").tolist()
        client.stop_stream()
    assert got == [4, 5, 6]


# 17. The ends of streams.


def test_after_half_close_everything_due_is_sent_then_ok(raw: Any) -> None:
    messages = [repeat("d", [1, 2, 3], pause=0.05), sleep("s", 0.1)]
    call = raw.stub.ModelStreamInfer(iter(messages), timeout=20)
    found = [answer.infer_response.id for answer in call]
    assert sorted(found) == ["d", "d", "d", "s"]
    assert call.code() is CODE.OK


def test_a_stream_without_a_request_is_ok(raw: Any) -> None:
    call = raw.stub.ModelStreamInfer(iter([]), timeout=20)
    assert list(call) == []
    assert call.code() is CODE.OK


def test_a_cancelled_stream_ends_its_handlers_and_leaves_the_connection_usable(
    replica: Any, connect: Any, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    raw = connect(replica.address)
    files = [tmp_path / f"held-{number}" for number in range(2)]
    with open_stream(raw) as (requests, answers):
        for file in files:
            requests.put(hold(file))
            assert next(answers).infer_response.id == "held"
        assert all(file.exists() for file in files)
        answers.cancel()
        # The slots that the handlers held are free when both have ended.
        eventually(lambda: not any(file.exists() for file in files))
        assert raw.call("ModelInfer", request("echo", "after")).id == "after"
        call = raw.stub.ModelStreamInfer(iter([repeat("after", [1])]), timeout=20)
        assert [summary(answer) for answer in call] == [("after", [1], False)]


def test_a_client_that_goes_ends_its_handlers(
    replica: Any, connect: Any, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    raw = connect(replica.address)
    with open_stream(raw) as (requests, answers):
        requests.put(hold(tmp_path / "held"))
        next(answers)
        raw.channel.close()
        eventually(lambda: not (tmp_path / "held").exists())


def test_tritonclient_cancels_what_is_pending(
    replica: Any, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    file = tmp_path / "held"
    inputs = [InferInput("file", [1], "BYTES"), InferInput("first", [1], "BOOL")]
    inputs[0].set_data_from_numpy(np.array([str(file).encode()], np.object_))
    inputs[1].set_data_from_numpy(np.array([True]))
    with InferenceServerClient(replica.address) as client:
        client.start_stream(lambda result, error: heard.put((result, error)), stream_timeout=30)
        client.async_stream_infer("hold", inputs)
        assert heard.get(timeout=20)[1] is None
        client.stop_stream(cancel_requests=True)
        eventually(lambda: not file.exists())


# Deadlines of one request on a stream.


def test_the_timeout_of_a_request_ends_it_and_not_the_stream(raw: Any, tmp_path: Path) -> None:
    held = hold(tmp_path / "held")
    held.parameters["timeout"].int64_param = 300_000  # microseconds
    with open_stream(raw) as (requests, answers):
        requests.put(held)
        assert next(answers).infer_response.id == "held"
        answer = next(answers)
        assert "deadline" in answer.error_message
        assert answer.infer_response.id == "held"
        requests.put(request("echo", "after"))
        assert next(answers).infer_response.id == "after"
