from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anyserve_protos.infer_wire import scan_request

from anyserve.app import App
from anyserve.client import encode_request
from anyserve.errors import InvalidArgument
from anyserve.messages import Response
from anyserve.objects.region_files import RegionFiles
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
    first, _ = encoder.encode(Response({"S": tensor(1, 2)}))
    again, _ = encoder.encode(Response({"S": tensor(1, 2, value=3.0)}))
    other, _ = encoder.encode(Response({"S": tensor(2, 2)}))
    with_parameter, _ = encoder.encode(Response({"S": tensor(1, 2)}, {"p": 1}))
    assert first == again
    assert len({first, other, with_parameter}) == 3
