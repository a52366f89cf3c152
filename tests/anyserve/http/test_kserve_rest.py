"""KServe v2 REST of a live replica, with tritonclient and by hand."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, shared_memory


@pytest.fixture
def client(http_replica: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(http_replica.http) as client:
        yield client


def tensor(name: str, array: Any, binary: bool = True) -> Any:
    array = np.asarray(array)
    datatype = "BYTES" if array.dtype == object else triton.np_to_triton_dtype(array.dtype)
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


@pytest.fixture(scope="session")
def asked(ask_http: Any) -> Callable[..., tuple[int, Any]]:
    """As `ask_http`, for answers in JSON."""

    def ask(*request: Any, **headers: str) -> tuple[int, Any]:
        status, text = ask_http(*request, **headers)
        return status, json.loads(text) if text else None

    return ask


# tritonclient.


def test_a_client_asks_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.is_model_ready("add", "3")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "anyserve"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    model = client.get_model_metadata("add")
    assert model["versions"] == ["3"]
    assert model["inputs"][0] == {"name": "A", "datatype": "FP32", "shape": [-1, 2]}
    config = client.get_model_config("batched", "1")
    assert config["max_batch_size"] == 4
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    assert config["input"][0]["dims"] == [2]
    names = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert names["echo"] == "READY"


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tensors_go_and_come_in_either_form(client: Any, binary_in: bool, binary_out: bool) -> None:
    a, b = np.arange(4, dtype=np.float32).reshape(2, 2), np.ones((2, 2), np.float32)
    result = client.infer(
        "add",
        [tensor("A", a, binary_in), tensor("B", b, binary_in)],
        outputs=[
            triton.InferRequestedOutput("SUM", binary_data=binary_out),
            triton.InferRequestedOutput("DIFFERENCE", binary_data=not binary_out),
        ],
        model_version="3",
        request_id="mine",
    )
    assert np.array_equal(result.as_numpy("SUM"), a + b)
    assert np.array_equal(result.as_numpy("DIFFERENCE"), a - b)
    assert result.get_response()["id"] == "mine"


def test_text_and_parameters_come_back(client: Any) -> None:
    words = np.array([b"", "é".encode(), b"x" * 70_000], dtype=object)
    for binary in (True, False):
        result = client.infer(
            "echo", [tensor("INPUT0", words, binary)], parameters={"one": 1, "two": "x"}
        )
        assert result.as_numpy("OUTPUT0").tolist() == words.tolist()
        assert result.get_response()["parameters"] == {"one": 1, "two": "x"}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_may_be_compressed(client: Any, coding: str) -> None:
    value = np.zeros(100_000, np.int64)
    result = client.infer("echo", [tensor("INPUT0", value)], request_compression_algorithm=coding)
    assert np.array_equal(result.as_numpy("OUTPUT0"), value)


def test_a_large_tensor_goes_through(client: Any) -> None:
    value = np.arange(3_000_000, dtype=np.int64)
    result = client.infer("echo", [tensor("INPUT0", value)])
    assert np.array_equal(result.as_numpy("OUTPUT0"), value)


def test_requests_run_at_once(http_replica: Any) -> None:
    seconds = np.array([0.3], np.float32)
    with triton.InferenceServerClient(http_replica.http, concurrency=8) as client:
        began = time.monotonic()
        waiting = [client.async_infer("sleep", [tensor("seconds", seconds)]) for _ in range(8)]
        for each in waiting:
            assert each.get_result().as_numpy("slept")[0] == seconds[0]
        assert time.monotonic() - began < 2


def test_statistics_count_what_was_answered(client: Any) -> None:
    def count() -> int:
        (found,) = client.get_inference_statistics("batched")["model_stats"]
        return int(found["inference_count"])

    before = count()
    client.infer("batched", [tensor("x", np.zeros((3, 2), np.int32))])
    assert count() == before + 3
    assert len(client.get_inference_statistics()["model_stats"]) > 5


def test_models_are_loaded_and_unloaded(start_replica: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--http", "0")
    with triton.InferenceServerClient(live.http) as client:
        client.unload_model("echo")
        with pytest.raises(InferenceServerException):
            client.infer("echo", [tensor("INPUT0", np.zeros(1))])
        client.load_model("echo")
        client.infer("echo", [tensor("INPUT0", np.zeros(1))])
        with pytest.raises(InferenceServerException, match="there is"):
            client.load_model("nothing")
        with pytest.raises(InferenceServerException, match="parameters"):
            client.load_model("echo", config="{}")


def test_tensors_lie_in_the_clients_memory(client: Any) -> None:
    value = np.arange(6, dtype=np.int32)
    handle = shared_memory.create_shared_memory_region("rest", "/rest-test-region", 48)
    try:
        shared_memory.set_shared_memory_region(handle, [value])
        client.unregister_cuda_shared_memory()
        client.register_system_shared_memory("rest", "/rest-test-region", 48)
        assert client.get_system_shared_memory_status("rest") == [
            {"name": "rest", "key": "/rest-test-region", "offset": 0, "byte_size": 48}
        ]
        given = triton.InferInput("INPUT0", [6], "INT32")
        given.set_shared_memory("rest", 24)
        wanted = triton.InferRequestedOutput("OUTPUT0")
        wanted.set_shared_memory("rest", 24, 24)
        result = client.infer("echo", [given], outputs=[wanted])
        assert result.get_output("OUTPUT0")["shape"] == [6]
        found = shared_memory.get_contents_as_numpy(handle, np.int32, [12])
        assert found.tolist() == [*range(6), *range(6)]
        client.unregister_system_shared_memory("rest")
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="CUDA"):
            client.register_cuda_shared_memory("gpu", b"", 0, 8)
    finally:
        shared_memory.destroy_shared_memory_region(handle)


# By hand.


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v2/models/nothing", None, 404, "nothing"),
        ("/v2/models/nothing/infer", {"inputs": []}, 404, "nothing"),
        ("/v2/models/a%20b/infer", {"inputs": []}, 400, "dotted words"),
        ("/v2/models/add/versions/x/infer", {"inputs": []}, 400, "not a number"),
        ("/v2/models/add/versions/4", None, 404, "version=3, not 4"),
        ("/v2/models/add/infer", {"inputs": []}, 400, "'A'"),
        ("/v2/models/add/infer", b"{", 400, "truncated"),
        ("/v2/models/add/infer", None, 405, "POST"),
        ("/v2/models/repeat/infer", {"inputs": []}, 400, "IN"),
        ("/v2/nothing", None, 404, "/v2/nothing"),
        ("/v2/systemsharedmemory/region/x/register", {"key": 1}, 400, "$.key"),
        ("/v2/repository/index", {"ready": "yes"}, 400, "$.ready"),
    ],
)
def test_what_is_wrong_is_said_with_its_status(
    http_replica: Any, path: str, body: Any, status: int, word: str, asked: Any
) -> None:
    found, answer = asked(http_replica.http, path, body)
    assert found == status
    assert word in answer["error"]


def test_a_decoupled_model_answers_where_it_gives_one_response(
    http_replica: Any, asked: Any
) -> None:
    def once(values: list[int]) -> tuple[int, Any]:
        shape = [len(values)]
        inputs = [{"name": "IN", "datatype": "INT32", "shape": shape, "data": values}]
        return asked(http_replica.http, "/v2/models/repeat/infer", {"inputs": inputs})

    status, answer = once([7])
    assert (status, answer["outputs"][0]["data"]) == (200, [7])
    assert once([7, 8])[0] == 501
    assert once([])[0] == 501


def test_needs_and_deadlines_come_by_headers(http_replica: Any, asked: Any) -> None:
    inputs = [{"name": "seconds", "datatype": "FP32", "shape": [1], "data": [5.0]}]
    sleep = (http_replica.http, "/v2/models/sleep/infer", {"inputs": inputs})
    for header, good in (("grpc_timeout", "200m"), ("x_request_timeout", "0.2")):
        began = time.monotonic()
        status, answer = asked(*sleep, **{header: good})
        assert (status, time.monotonic() - began < 3) == (504, True)
        status, answer = asked(*sleep, **{header: "soon"})
        name = header.replace("_", "-")
        assert (status, name in answer["error"].lower()) == (400, True)
    status, answer = asked(
        *(http_replica.http, "/v2/models/add/infer", {"inputs": []}), anyserve_need_model="other"
    )
    assert (status, "model=adder" in answer["error"]) == (404, True)


def test_generate_gives_flat_json(http_replica: Any, asked: Any) -> None:
    status, answer = asked(
        http_replica.http, "/v2/models/repeat/generate", {"IN": 7, "pause": 0.0, "id": "a"}
    )
    assert status == 200
    assert answer == {"model_name": "repeat", "model_version": "1", "id": "a", "OUT": 7}
    status, answer = asked(http_replica.http, "/v2/models/repeat/generate", {"IN": "x"})
    assert (status, "'IN'" in answer["error"]) == (400, True)
    assert asked(http_replica.http, "/v2/models/nothing/generate", {})[0] == 404


def events(data: bytes) -> list[Any]:
    found = [part for part in data.decode().split("\n\n") if part]
    assert all(part.startswith("data: ") for part in found)
    return [json.loads(part[6:]) for part in found]


def test_generate_stream_gives_an_event_for_each_response(http_replica: Any) -> None:
    connection = HTTPConnection(http_replica.http, timeout=20)
    body = json.dumps({"IN": [1, 2, 3]})
    for _ in range(2):  # the connection goes on
        connection.request("POST", "/v2/models/repeat/generate_stream", body)
        answer = connection.getresponse()
        assert answer.getheader("content-type") == "text/event-stream"
        assert [event["OUT"] for event in events(answer.read())] == [1, 2, 3]
    connection.request("POST", "/v2/models/repeat/generate_stream", '{"IN": "x"}')
    answer = connection.getresponse()
    assert answer.status == 400
    assert "IN" in json.loads(answer.read())["error"]
    connection.close()


@pytest.mark.parametrize("first", [False, True])
def test_a_client_that_goes_ends_the_handler(
    http_replica: Any, tmp_path: Path, first: bool, eventually: Any
) -> None:
    file = tmp_path / "runs"
    body = {"file": str(file), **({"first": 1} if first else {})}
    connection = HTTPConnection(http_replica.http, timeout=20)
    connection.request("POST", "/v2/models/hold/generate_stream", json.dumps(body))
    if first:
        with connection.getresponse() as answer:
            assert answer.readline().startswith(b"data: ")
            eventually(file.exists)
            connection.close()
    else:
        eventually(file.exists)
        connection.close()
    eventually(lambda: not file.exists())


def test_a_client_that_reads_slowly_holds_the_handler(
    http_replica: Any, tmp_path: Path, eventually: Any
) -> None:
    file = tmp_path / "given"
    connection = HTTPConnection(http_replica.http, timeout=20)
    body = json.dumps({"file": str(file), "size": 200_000})
    connection.request("POST", "/v2/models/flood/generate_stream", body)
    eventually(lambda: file.exists() and file.read_text())
    last = ""
    while (given := file.read_text()) != last:
        last = given
        time.sleep(0.5)
    assert int(last or 0) < 200
    connection.close()


def test_what_is_in_flight_when_it_drains_is_answered(
    start_replica: Any, eventually: Any, asked: Any
) -> None:
    live = start_replica("--app", "behaviours:app", "--http", "0")
    connection = HTTPConnection(live.http, timeout=20)
    body = json.dumps({"IN": [1, 2], "pause": 6})
    connection.request("POST", "/v2/models/repeat/generate_stream", body)
    with connection.getresponse() as answer:
        first = answer.readline() + answer.readline()
        live.process.terminate()
        eventually(lambda: asked(live.http, "/ready")[0] == 503)
        status, refused = asked(live.http, "/v2/models/echo/infer", {"inputs": []})
        assert (status, "draining" in refused["error"]) == (503, True)
        assert [event["OUT"] for event in events(first + answer.read())] == [1, 2]
    assert connection.sock is not None
    assert connection.sock.recv(1) == b""
    connection.close()
    assert live.process.wait(10) == 0


def test_a_body_that_inflates_too_much_is_refused(http_replica: Any, asked: Any) -> None:
    bomb = gzip.compress(b" " * (40 << 20))
    status, answer = asked(
        http_replica.http, "/v2/models/echo/infer", bomb, content_encoding="gzip"
    )
    assert (status, "larger than" in answer["error"]) == (413, True)
