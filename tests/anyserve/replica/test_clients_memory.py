"""System shared memory with tritonclient: regions of clients that behave, and of others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

pb: Any = service_pb2
CODE = grpc.StatusCode
FOUR = np.array([[1, 2], [3, 4]], np.float32)


class Region:
    """One region of a test, made by tritonclient."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.key = f"/{name}-{os.getpid()}"
        self.path = f"/dev/shm{self.key}"
        self.size = size
        self.handle = shm.create_shared_memory_region(name, self.key, size, create_only=True)

    def write(self, array: np.ndarray[Any, Any], offset: int = 0) -> None:
        shm.set_shared_memory_region(self.handle, [array], offset)

    def read(self, shape: tuple[int, ...], offset: int = 0) -> np.ndarray[Any, Any]:
        """FP32 at `offset`, copied."""
        view = shm.get_contents_as_numpy(self.handle, np.float32, shape, offset)
        return np.array(view)

    def destroy(self) -> None:
        if not os.path.exists(self.path):  # a test unlinked it: its owner wants to do so too
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        shm.destroy_shared_memory_region(self.handle)


MakeRegion = Callable[..., Region]


@pytest.fixture
def region(triton: Any) -> Iterator[MakeRegion]:
    """Make regions, registered unless told otherwise; the test leaves none behind."""
    made: list[Region] = []

    def make(name: str, size: int, *, register: bool = True) -> Region:
        made.append(Region(name, size))
        if register:
            triton.register_system_shared_memory(name, made[-1].key, size, client_timeout=20)
        return made[-1]

    yield make
    triton.unregister_system_shared_memory(client_timeout=20)
    for one in made:
        one.destroy()


def shared_input(name: str, region: str, size: int = 16, offset: int = 0) -> InferInput:
    tensor = InferInput(name, [2, 2], "FP32")
    tensor.set_shared_memory(region, size, offset)
    return tensor


def shared_output(name: str, region: str, size: int = 16, offset: int = 0) -> InferRequestedOutput:
    output = InferRequestedOutput(name)
    output.set_shared_memory(region, size, offset)
    return output


def inline(name: str, array: np.ndarray[Any, Any] = FOUR) -> InferInput:
    tensor = InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def add(
    triton: Any, inputs: list[InferInput], outputs: list[InferRequestedOutput] | None = None
) -> Any:
    return triton.infer("add", inputs, outputs=outputs, client_timeout=20)


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, str]:
    """Status and message of a call of tritonclient's that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **kwargs)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


# 10. Inputs and outputs in regions.


def test_inputs_and_outputs_travel_in_the_client_s_own_regions(
    triton: Any, region: MakeRegion
) -> None:
    ins, outs = region("ins", 64), region("outs", 64)
    ins.write(FOUR, 0)
    ins.write(FOUR * 10, 32)
    result = add(
        triton,
        [shared_input("A", "ins"), shared_input("B", "ins", offset=32)],
        [shared_output("SUM", "outs", 32), shared_output("DIFFERENCE", "outs", offset=32)],
    )
    assert outs.read((2, 2)).tolist() == (FOUR * 11).tolist()
    assert outs.read((2, 2), 32).tolist() == (FOUR * -9).tolist()
    answer = result.get_response()
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("SUM", "FP32", [2, 2]),
        ("DIFFERENCE", "FP32", [2, 2]),
    ]
    assert list(answer.raw_output_contents) == [b"", b""]
    placed = answer.outputs[1].parameters
    assert placed["shared_memory_region"].string_param == "outs"
    assert placed["shared_memory_byte_size"].int64_param == 16
    assert placed["shared_memory_offset"].int64_param == 32


def test_regions_mix_with_inline_tensors_in_any_order(triton: Any, region: MakeRegion) -> None:
    ins, outs = region("ins", 16), region("outs", 16)
    ins.write(FOUR * 3)
    for inputs in (
        [shared_input("A", "ins"), inline("B")],
        [inline("B"), shared_input("A", "ins")],
    ):
        outputs = [InferRequestedOutput("DIFFERENCE"), shared_output("SUM", "outs")]
        result = add(triton, inputs, outputs)
        assert result.as_numpy("DIFFERENCE").tolist() == (FOUR * 2).tolist()
        assert outs.read((2, 2)).tolist() == (FOUR * 4).tolist()
        raw_contents = result.get_response().raw_output_contents
        assert [len(content) for content in raw_contents] == [16, 0]


def test_an_offset_counts_from_the_registered_offset(triton: Any, region: MakeRegion) -> None:
    whole = region("whole", 4096, register=False)
    triton.register_system_shared_memory("part", whole.key, 1024, offset=1000, client_timeout=20)
    whole.write(FOUR, 1000 + 24)
    outputs = [shared_output("SUM", "part", offset=512)]
    add(triton, [shared_input("A", "part", offset=24), inline("B")], outputs)
    assert whole.read((2, 2), 1512).tolist() == (FOUR * 2).tolist()


def test_strings_and_large_tensors_travel_in_regions(triton: Any, region: MakeRegion) -> None:
    size = 4 << 20
    ins, outs = region("ins", size), region("outs", size)
    array = np.arange(size // 4, dtype=np.float32)
    ins.write(array)
    tensor = InferInput("INPUT", [size // 4], "FP32")
    tensor.set_shared_memory("ins", size)
    output = shared_output("OUTPUT", "outs", size)
    triton.infer("echo", [tensor], outputs=[output], client_timeout=20)
    np.testing.assert_array_equal(outs.read((size // 4,)), array)

    framed = b"\x02\x00\x00\x00ab\x00\x00\x00\x00\x01\x00\x00\x00\x00"
    ins.write(np.frombuffer(framed, np.uint8))
    tensor = InferInput("INPUT", [3], "BYTES")
    tensor.set_shared_memory("ins", len(framed))
    triton.infer("echo", [tensor], outputs=[output], client_timeout=20)
    read = shm.get_contents_as_numpy(outs.handle, np.object_, [3])
    assert read.tolist() == [b"ab", b"", b"\0"]


def test_decoupled_responses_go_to_the_region_one_after_another(
    raw: Any, region: MakeRegion
) -> None:
    outs = region("outs", 4)
    request = pb.ModelInferRequest(model_name="repeat")
    request.inputs.add(name="IN", datatype="INT32", shape=[3])
    request.raw_input_contents.append(np.array([7, 8, 9], np.int32).tobytes())
    parameters = request.outputs.add(name="OUT").parameters
    parameters["shared_memory_region"].string_param = "outs"
    parameters["shared_memory_byte_size"].int64_param = 4
    answers = list(raw.stub.ModelStreamInfer(iter([request]), timeout=20))
    assert len(answers) == 3
    assert all(a.infer_response.raw_output_contents == [b""] for a in answers)
    assert outs.read((1,)).view(np.int32).tolist() == [9]


# 4. What can be wrong.


def test_status_lists_what_is_registered(triton: Any, region: MakeRegion) -> None:
    one, two = region("one", 64), region("two", 128, register=False)
    triton.register_system_shared_memory("two", two.key, 100, offset=28, client_timeout=20)
    regions = triton.get_system_shared_memory_status(client_timeout=20).regions
    assert {
        name: (status.name, status.key, status.offset, status.byte_size)
        for name, status in regions.items()
    } == {"one": ("one", one.key, 0, 64), "two": ("two", two.key, 28, 100)}
    assert list(triton.get_system_shared_memory_status("two", client_timeout=20).regions) == ["two"]
    triton.unregister_system_shared_memory("one", client_timeout=20)
    assert list(triton.get_system_shared_memory_status(client_timeout=20).regions) == ["two"]
    triton.unregister_system_shared_memory(client_timeout=20)
    assert not triton.get_system_shared_memory_status(client_timeout=20).regions


def test_a_name_in_use_already_exists(triton: Any, region: MakeRegion) -> None:
    one = region("one", 64)
    code, message = refused(triton.register_system_shared_memory, "one", one.key, 64)
    assert code == "ALREADY_EXISTS"
    assert "'one'" in message


@pytest.mark.parametrize(
    "key, size, offset, code",
    [
        ("/nothing-there", 16, 0, "INTERNAL"),
        (None, 65, 0, "INTERNAL"),
        (None, 64, 1, "INTERNAL"),
        (None, 0, 0, "INTERNAL"),
        (None, 1, 2**64 - 1, "INTERNAL"),
        (None, 2**64 - 1, 1, "INTERNAL"),
        ("///", 16, 0, "INVALID_ARGUMENT"),
        ("", 16, 0, "INVALID_ARGUMENT"),
        ("/../etc/passwd", 16, 0, "INVALID_ARGUMENT"),
        ("..", 16, 0, "INVALID_ARGUMENT"),
        ("/anyserve-1-1-1-1", 16, 0, "INVALID_ARGUMENT"),
        ("anyserve-", 16, 0, "INVALID_ARGUMENT"),
        ("sem.x", 16, 0, "INVALID_ARGUMENT"),
        ("k" * 256, 16, 0, "INVALID_ARGUMENT"),
        ("a\0b", 16, 0, "INVALID_ARGUMENT"),
    ],
)
def test_a_key_or_extent_that_can_t_be_is_refused_at_register(
    triton: Any, region: MakeRegion, key: str | None, size: int, offset: int, code: str
) -> None:
    real = region("real", 64, register=False)
    assert os.stat(real.path).st_size == 64
    chosen = real.key if key is None else key
    found, message = refused(triton.register_system_shared_memory, "bad", chosen, size, offset)
    assert found == code, message
    assert "'bad'" in message
    assert not triton.get_system_shared_memory_status(client_timeout=20).regions


def test_unknown_regions_are_not_found_and_unregistering_them_is_fine(triton: Any) -> None:
    assert refused(triton.get_system_shared_memory_status, "nothing")[0] == "NOT_FOUND"
    triton.unregister_system_shared_memory("nothing", client_timeout=20)
    for inputs, outputs in (
        ([shared_input("A", "nothing"), inline("B")], None),
        ([inline("A"), inline("B")], [shared_output("SUM", "nothing")]),
    ):
        code, message = refused(add, triton, inputs, outputs)
        assert code == "NOT_FOUND"
        assert "'nothing'" in message


@pytest.mark.parametrize("size, offset", [(16, 1), (17, 0), (16, 2**62), (2**62, 0), (16, -1)])
def test_a_range_outside_of_the_region_is_invalid(
    triton: Any, region: MakeRegion, size: int, offset: int
) -> None:
    region("one", 16)
    for inputs, outputs in (
        ([shared_input("A", "one", size, offset), inline("B")], None),
        ([inline("A"), inline("B")], [shared_output("SUM", "one", size, offset)]),
    ):
        code, message = refused(add, triton, inputs, outputs)
        assert code == "INVALID_ARGUMENT", message


def test_what_a_request_has_in_regions_is_bounded_together(
    start_replica: Any, connect: Any
) -> None:
    live = start_replica("--app", "behaviours:app", "--message-limit", "1")
    raw = connect(live.address)
    half = (1 << 19) + 1
    large = Region("large", half)
    try:
        register = pb.SystemSharedMemoryRegisterRequest(name="large", key=large.key, byte_size=half)
        raw.call("SystemSharedMemoryRegister", register)
        request = pb.ModelInferRequest(model_name="echo")
        for name in ("x", "y"):
            parameters = request.inputs.add(name=name, datatype="UINT8", shape=[half]).parameters
            parameters["shared_memory_region"].string_param = "large"
            parameters["shared_memory_byte_size"].int64_param = half
        refusal = raw.refusal("ModelInfer", request)
        assert refusal.code is CODE.RESOURCE_EXHAUSTED
        assert "'y'" in refusal.message
        del request.inputs[1]
        raw.call("ModelInfer", request)
    finally:
        large.destroy()


def test_a_range_that_is_not_what_the_shape_says_is_invalid(
    triton: Any, region: MakeRegion
) -> None:
    region("one", 64)
    code, message = refused(add, triton, [shared_input("A", "one", 12), inline("B")])
    assert code == "INVALID_ARGUMENT"
    assert "'A'" in message


def test_an_output_that_does_not_fit_its_range_is_internal(triton: Any, region: MakeRegion) -> None:
    one = region("one", 64)
    before = one.read((16,)).tolist()
    inputs = [inline("A"), inline("B")]
    code, message = refused(add, triton, inputs, [shared_output("SUM", "one", 12)])
    assert code == "INTERNAL"
    assert "'one'" in message
    assert one.read((16,)).tolist() == before


def test_outputs_that_overlap_are_invalid(triton: Any, region: MakeRegion) -> None:
    one = region("one", 64)
    triton.register_system_shared_memory("alias", one.key, 64, client_timeout=20)
    for second in (
        shared_output("DIFFERENCE", "one", 16, 15),
        shared_output("DIFFERENCE", "alias"),
    ):
        outputs = [shared_output("SUM", "one"), second]
        code, message = refused(add, triton, [inline("A"), inline("B")], outputs)
        assert code == "INVALID_ARGUMENT"
        assert "overlap" in message


def test_an_input_in_a_region_with_contents_beside_it_is_invalid(
    raw: Any, region: MakeRegion
) -> None:
    region("one", 4)
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="x", datatype="INT32", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "one"
    tensor.parameters["shared_memory_byte_size"].int64_param = 4
    raw.call("ModelInfer", request)
    request.raw_input_contents.append(bytes(4))
    assert raw.refusal("ModelInfer", request).code is CODE.INVALID_ARGUMENT
    request.ClearField("raw_input_contents")
    tensor.contents.int_contents.append(1)
    assert raw.refusal("ModelInfer", request).code is CODE.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "mutate, named",
    [
        (lambda p: p.pop("shared_memory_byte_size"), "shared_memory_byte_size"),
        (
            lambda p: setattr(p["shared_memory_byte_size"], "string_param", "4"),
            "shared_memory_byte_size",
        ),
        (
            lambda p: setattr(p["shared_memory_offset"], "bool_param", True),
            "shared_memory_offset",
        ),
        (lambda p: setattr(p["shared_memory_region"], "int64_param", 1), "shared_memory_region"),
    ],
)
def test_region_parameters_of_the_wrong_type_are_invalid_and_named(
    raw: Any, region: MakeRegion, mutate: Callable[[Any], object], named: str
) -> None:
    region("one", 4)
    request = pb.ModelInferRequest(model_name="echo")
    parameters = request.inputs.add(name="x", datatype="INT32", shape=[1]).parameters
    parameters["shared_memory_region"].string_param = "one"
    parameters["shared_memory_byte_size"].int64_param = 4
    mutate(parameters)
    refusal = raw.refusal("ModelInfer", request)
    assert refusal.code is CODE.INVALID_ARGUMENT
    assert named in refusal.message


# 28. Clients that shrink, unlink or replace what they registered.


def truncate(one: Region) -> None:
    os.truncate(one.path, 8)


def truncate_to_nothing(one: Region) -> None:
    os.truncate(one.path, 0)


def unlink(one: Region) -> None:
    os.unlink(one.path)


def replace(one: Region) -> None:
    os.unlink(one.path)
    with open(one.path, "wb") as other:
        other.write(bytes(one.size))


@pytest.mark.parametrize("damage", [truncate, truncate_to_nothing, unlink, replace])
@pytest.mark.parametrize("used_before", [False, True])
def test_a_region_that_is_no_more_as_registered_is_an_error_and_no_crash(
    raw: Any, triton: Any, region: MakeRegion, damage: Callable[[Region], None], used_before: bool
) -> None:
    one = region("one", 1 << 20)
    pid = worker_pid(raw)
    inputs = [shared_input("A", "one", offset=1 << 19), inline("B")]
    outputs = [shared_output("SUM", "one", offset=1 << 19)]
    if used_before:
        add(triton, inputs, outputs)
    damage(one)
    for arguments in (
        (inputs, None),
        ([inline("A"), inline("B")], outputs),
    ):
        code, message = refused(add, triton, *arguments)
        assert code == "INVALID_ARGUMENT"
        assert "'one'" in message
    assert worker_pid(raw) == pid
    if damage in (truncate, truncate_to_nothing):
        assert os.stat(one.path).st_size in (0, 8)
    assert add(triton, [inline("A"), inline("B")]).as_numpy("SUM").tolist() == (FOUR * 2).tolist()


def test_a_region_that_shrinks_and_grows_all_the_time_harms_nobody(
    raw: Any, triton: Any, region: MakeRegion
) -> None:
    one = region("one", 1 << 20)
    pid = worker_pid(raw)
    enough = threading.Event()

    def shrink_and_grow() -> None:
        while not enough.is_set():
            os.truncate(one.path, 0)
            os.truncate(one.path, one.size)

    tensor = InferInput("INPUT", [1 << 17], "FP32")
    tensor.set_shared_memory("one", 1 << 19)
    output = InferRequestedOutput("OUTPUT")
    output.set_shared_memory("one", 1 << 19, 1 << 19)
    statuses = set()
    client = threading.Thread(target=shrink_and_grow)
    client.start()
    try:
        for _ in range(100):
            try:
                triton.infer("echo", [tensor], outputs=[output], client_timeout=20)
            except InferenceServerException as error:
                statuses.add(error.status())
    finally:
        enough.set()
        client.join()
    assert statuses <= {"StatusCode.INVALID_ARGUMENT"}
    assert worker_pid(raw) == pid


def test_a_region_that_was_unregistered_may_be_registered_again(
    triton: Any, region: MakeRegion
) -> None:
    one = region("one", 64)
    one.write(FOUR)
    inputs = [shared_input("A", "one"), inline("B")]
    add(triton, inputs)
    triton.unregister_system_shared_memory("one", client_timeout=20)
    assert refused(add, triton, inputs)[0] == "NOT_FOUND"
    triton.register_system_shared_memory("one", one.key, 64, client_timeout=20)
    assert add(triton, inputs).as_numpy("SUM").tolist() == (FOUR * 2).tolist()


def test_client_shared_memory_can_be_switched_off(start_replica: Any, connect: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--no-client-shared-memory")
    raw = connect(live.address)
    refusal = raw.refusal(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="one", key="/one", byte_size=16),
    )
    assert refusal.code is CODE.UNIMPLEMENTED
    assert "shared memory is switched off" in refusal.message
    status = raw.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())
    assert not status.regions
    raw.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())
    answer = raw.call("ServerMetadata", pb.ServerMetadataRequest())
    assert "system_shared_memory" not in answer.extensions


# 5. CUDA.


def test_cuda_regions_are_refused_in_words_and_unregistered_in_peace(triton: Any) -> None:
    triton.unregister_cuda_shared_memory(client_timeout=20)
    triton.unregister_cuda_shared_memory("any", client_timeout=20)
    assert not triton.get_cuda_shared_memory_status(client_timeout=20).regions
    code, message = refused(triton.register_cuda_shared_memory, "one", b"AAAA", 0, 16)
    assert code == "UNIMPLEMENTED"
    assert "CUDA" in message


def worker_pid(raw: Any) -> int:
    answer = raw.call("ModelInfer", pb.ModelInferRequest(model_name="about"))
    (content,) = (
        content
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        if output.name == "pid"
    )
    return int(np.frombuffer(content, np.int64)[0])
