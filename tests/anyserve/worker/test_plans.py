from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyserve_protos.infer_wire import scan_request
from anyserve_protos.inference import InferParameter, ModelInferRequest
from anyserve_protos.inference import ModelInferRequestInferInputTensor as InputTensor
from anyserve_protos.inference import (
    ModelInferRequestInferRequestedOutputTensor as RequestedOutput,
)

from anyserve.app import App
from anyserve.client import encode_request
from anyserve.errors import InvalidArgument, NotFound
from anyserve.messages import Response
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import Regions
from anyserve.worker import plans
from anyserve.worker.plans import Opened, Plans
from anyserve.worker.shared import ClientRegions

app = App()


@app.capability(
    "add",
    inputs={"A": "FP32[-1,2]", "B": "FP32[-1,2]?"},
    max_batch_size=4,
    outputs={"S": "FP32[2]"},
)
async def add(request: Any, context: Any) -> Response:
    raise NotImplementedError


@app.capability("words")
async def words(request: Any, context: Any) -> Response:
    raise NotImplementedError


def opened(plan: Plans, inputs: dict[str, Any], **fields: Any) -> Opened:
    head = scan_request(encode_request("add", inputs, fields.pop("parameters", {}), **fields))
    return plan.open(head.head, head.raw, ClientRegions({}, RegionFiles()))


@pytest.fixture
def add_plans() -> Plans:
    return Plans(app.handler("add").offer)


def tensor(*shape: int, value: float = 1.0) -> Any:
    return np.full(shape, value, np.float32)


def test_requests_with_the_same_head_have_their_own_tensors(add_plans: Plans) -> None:
    for value in (1.0, 2.0, 3.0):
        found = opened(add_plans, {"A": tensor(3, 5, 2, value=value)})
        assert found.batch == 3
        assert np.array_equal(found.request["A"], tensor(3, 5, 2, value=value))
        assert not found.request["A"].flags.writeable


def test_a_kept_plan_still_checks_the_length_of_the_contents(add_plans: Plans) -> None:
    head = scan_request(encode_request("add", {"A": tensor(1, 5, 2)}, {}))
    regions = ClientRegions({}, RegionFiles())
    for _ in range(2):
        add_plans.open(head.head, head.raw, regions)
        with pytest.raises(InvalidArgument, match="input 'A': 39 bytes"):
            add_plans.open(head.head, [bytes(39)], regions)
        with pytest.raises(InvalidArgument, match="raw_input_contents has 2 entries"):
            add_plans.open(head.head, [*head.raw, b""], regions)
        with pytest.raises(InvalidArgument, match="no contents"):
            add_plans.open(head.head, [], regions)


def test_what_is_wrong_with_a_head_is_wrong_each_time(add_plans: Plans) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="batch size 5"):
            opened(add_plans, {"A": tensor(5, 1, 2)})
        with pytest.raises(InvalidArgument, match="shape"):
            opened(add_plans, {"A": tensor(1, 1, 3)})
        with pytest.raises(InvalidArgument, match="'C'"):
            opened(add_plans, {"A": tensor(1, 1, 2), "C": tensor(1, 1, 2)})


def test_ids_and_parameters_are_those_of_the_request(add_plans: Plans) -> None:
    for identity, value in (("a", 1), ("b", 2), ("a", 1)):
        found = opened(
            add_plans, {"A": tensor(1, 1, 2)}, request_id=identity, parameters={"p": value}
        )
        assert (found.request.id, found.request.parameters) == (identity, {"p": value})


def test_a_handler_that_changes_its_parameters_changes_those_of_no_other(add_plans: Plans) -> None:
    for _ in range(3):
        found = opened(add_plans, {"A": tensor(1, 1, 2)}, parameters={"p": 1})
        assert found.request.parameters == {"p": 1}
        found.request.parameters["q"] = 2  # type: ignore[index]


def test_no_more_plans_are_kept_than_the_limit(add_plans: Plans) -> None:
    for number in range(plans._KEPT + 10):
        opened(add_plans, {"A": tensor(1, 1, 2)}, request_id=str(number))
    assert len(add_plans._plans) == plans._KEPT


def test_responses_that_are_alike_have_equal_heads_and_others_their_own(add_plans: Plans) -> None:
    encoder = opened(add_plans, {"A": tensor(1, 1, 2)}).encoder
    first, *_ = encoder.encode(Response({"S": tensor(1, 2)}))
    again, *_ = encoder.encode(Response({"S": tensor(1, 2, value=3.0)}))
    other, *_ = encoder.encode(Response({"S": tensor(2, 2)}))
    with_parameter, *_ = encoder.encode(Response({"S": tensor(1, 2)}, {"p": 1}))
    assert first == again
    assert len({first, other, with_parameter}) == 3


def in_region(region: str, size: int, offset: int = 0) -> dict[str, InferParameter]:
    parameters = {
        "shared_memory_region": InferParameter(string_param=region),
        "shared_memory_byte_size": InferParameter(int64_param=size),
    }
    if offset:
        parameters["shared_memory_offset"] = InferParameter(int64_param=offset)
    return parameters


IN_REGIONS = bytes(
    ModelInferRequest(
        model_name="words",
        inputs=[
            InputTensor(
                name="A", datatype="INT32", shape=[2], parameters=in_region("mine", 8, offset=4)
            )
        ],
        outputs=[RequestedOutput(name="B", parameters=in_region("mine", 32, offset=32))],
    )
)


class Client:
    """A client with one file of shared memory, and a worker that has its regions."""

    def __init__(self) -> None:
        self.path = Path("/dev/shm", f"client-{os.getpid()}-plans")
        self.path.write_bytes(bytes(64))
        self.registered = Regions()
        self.registered.register("mine", self.path.name, 0, 64)
        self.files = RegionFiles()
        self.plans = Plans(app.handler("words").offer)

    def write(self, at: int, values: list[int]) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(np.array(values, np.int32).tobytes())

    def open(self, *names: str, head: bytes = IN_REGIONS) -> Opened:
        regions = {name: self.registered.find(name) for name in names}
        return self.plans.open(head, [], ClientRegions(regions, self.files))

    def close(self) -> None:
        self.registered.unregister_all()
        self.files.close()
        self.path.unlink()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def test_a_kept_plan_reads_and_writes_the_regions_of_each_request(client: Client) -> None:
    for value in (1, 2, 3):
        client.write(4, [value, -value])
        found = client.open("mine")
        assert found.request["A"].tolist() == [value, -value]
        found.encoder.encode(Response({"B": np.array([value * 10], np.int32)}))
        assert np.frombuffer(client.path.read_bytes(), np.int32)[8] == value * 10


def test_a_kept_plan_goes_by_what_the_region_names_now(client: Client) -> None:
    client.write(4, [1, 2])
    client.write(12, [3, 4])
    assert client.open("mine").request["A"].tolist() == [1, 2]
    client.registered.unregister("mine")
    with pytest.raises(NotFound, match=r"input 'A'.*'mine'"):
        client.open()
    client.registered.register("mine", client.path.name, 8, 24)
    with pytest.raises(InvalidArgument, match="outside its 24 bytes"):
        client.open("mine")
    client.registered.unregister("mine")
    client.registered.register("mine", client.path.name, 0, 64)
    os.truncate(client.path, 10)
    with pytest.raises(InvalidArgument, match="was shrunk"):
        client.open("mine")


def test_the_head_of_a_response_says_how_much_of_a_region_is_filled(client: Client) -> None:
    encoder = client.open("mine").encoder
    heads = [encoder.encode(Response({"B": [word]}))[0] for word in ("a", "bcd", "e")]
    assert heads[0] == heads[2] != heads[1]


def test_outputs_that_overlap_are_refused_each_time(client: Client) -> None:
    request = ModelInferRequest(
        model_name="words",
        outputs=[
            RequestedOutput(name=name, parameters=in_region("mine", 8, offset=offset))
            for name, offset in (("B", 0), ("C", 4))
        ],
    )
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="overlap"):
            client.open("mine", head=bytes(request))
