"""The other clients: tritonclient.grpc.aio, grpc.aio, grpclib and our own; compression."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
import trio
from anyserve_protos import inference
from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from tritonclient.grpc import InferInput, aio, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from anyserve.client import Client, open_client
from anyserve.errors import AnyServeError, InvalidArgument, NotFound

pb: Any = service_pb2
FINAL = "triton_final_response"
SERVICE = "/inference.GRPCInferenceService"
FOUR = np.array([1, 2, 3, 4], np.int32)


def in_asyncio(function: Callable[[], Awaitable[None]]) -> None:
    """Run an asyncio client to its end, which must come soon."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await function()

    asyncio.run(bounded())


def tensor(name: str, array: np.ndarray[Any, Any]) -> InferInput:
    made = InferInput(name, list(array.shape), "INT32")
    made.set_data_from_numpy(array)
    return made


# tritonclient.grpc.aio and grpc.aio.


def test_triton_s_aio_client_infers_many_at_once_and_hears_of_errors(replica: Any) -> None:
    async def run() -> None:
        async with aio.InferenceServerClient(replica.address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("echo")
            results = await asyncio.gather(
                *(client.infer("echo", [tensor("INPUT", FOUR + n)]) for n in range(50))
            )
            for n, result in enumerate(results):
                assert result.as_numpy("OUTPUT").tolist() == (FOUR + n).tolist()
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("nothing", [])
            assert caught.value.status() == "StatusCode.NOT_FOUND"
            index = await client.get_model_repository_index()
            assert "echo" in [model.name for model in index.models]
            statistics = await client.get_inference_statistics("echo")
            assert statistics.model_stats[0].inference_count >= 50

    in_asyncio(run)


def test_triton_s_aio_client_streams(replica: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "nothing", "inputs": [], "request_id": "bad"}
        yield {
            "model_name": "repeat",
            "inputs": [tensor("IN", FOUR)],
            "request_id": "r",
            "enable_empty_final_response": True,
        }

    async def run() -> None:
        got, errors = [], []
        async with aio.InferenceServerClient(replica.address) as client:
            async for result, error in client.stream_infer(requests()):
                if error is not None:
                    errors.append(error.message())
                elif not result.get_response().parameters[FINAL].bool_param:
                    got += result.as_numpy("OUT").tolist()
        assert got == FOUR.tolist()
        assert len(errors) == 1

    in_asyncio(run)


def test_grpc_aio_cancels_a_call_and_goes_on(replica: Any) -> None:
    async def run() -> None:
        async with grpc.aio.insecure_channel(replica.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            request = pb.ModelInferRequest(model_name="sleep")
            request.inputs.add(name="seconds", datatype="FP32", shape=[1])
            request.raw_input_contents.append(np.array([60], np.float32).tobytes())
            call = stub.ModelInfer(request, timeout=30)
            await stub.ServerLive(pb.ServerLiveRequest(), timeout=20)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="echo"), timeout=20)
            assert answer.model_name == "echo"

    in_asyncio(run)


# grpclib, with our generated messages.


def test_grpclib_calls_and_streams(replica: Any) -> None:
    async def run() -> None:
        async with Channel("127.0.0.1", replica.port) as channel:
            unary: UnaryUnaryMethod[Any, Any] = UnaryUnaryMethod(
                channel,
                f"{SERVICE}/ModelInfer",
                inference.ModelInferRequest,
                inference.ModelInferResponse,
            )
            answer = await unary(inference.ModelInferRequest(model_name="echo", id="g"), timeout=20)
            assert (answer.model_name, answer.id) == ("echo", "g")
            with pytest.raises(GRPCError) as caught:
                await unary(inference.ModelInferRequest(model_name="nothing"), timeout=20)
            assert caught.value.status is Status.NOT_FOUND

            streamed: StreamStreamMethod[Any, Any] = StreamStreamMethod(
                channel,
                f"{SERVICE}/ModelStreamInfer",
                inference.ModelInferRequest,
                inference.ModelStreamInferResponse,
            )
            async with streamed.open(timeout=20) as stream:
                for identity in ("1", "2", "3"):
                    message = inference.ModelInferRequest(model_name="echo", id=identity)
                    await stream.send_message(message, end=identity == "3")
                got = [answer.infer_response.id async for answer in stream]
            assert got == ["1", "2", "3"]

    in_asyncio(run)


# Our own client, on Trio.


async def own(replica: Any, use: Callable[[Client], Awaitable[None]]) -> None:
    with trio.fail_after(30):
        async with open_client(replica.address) as client:
            await use(client)


async def test_our_client_infers_streams_and_asks(replica: Any) -> None:
    async def use(client: Client) -> None:
        response = await client.infer("echo", {"x": FOUR, "s": ["a", b""]}, {"p": 1.5})
        assert np.asarray(response.outputs["x"]).tolist() == FOUR.tolist()
        assert np.asarray(response.outputs["s"]).tolist() == [b"a", b""]
        assert response.parameters["p"] == 1.5
        got = []
        async with aclosing(client.generate("repeat", {"IN": FOUR})) as responses:
            async for response in responses:
                got += np.asarray(response.outputs["OUT"]).tolist()
        assert got == FOUR.tolist()
        assert await client.ready()
        assert "echo" in await client.capabilities()
        assert (await client.metadata("add")).versions == ["3"]

    await own(replica, use)


async def test_our_client_raises_the_error_of_the_status(replica: Any) -> None:
    async def use(client: Client) -> None:
        with pytest.raises(NotFound, match="'nothing'"):
            await client.infer("nothing", {})
        with pytest.raises(InvalidArgument, match="'A'"):
            await client.infer("add", {})
        async with client.stream() as stream:
            await stream.send("nothing", {})
            with pytest.raises(AnyServeError, match="'nothing'"):
                await anext(stream)
            await stream.send("echo", {}, request_id="after")
            await anext(stream)

    await own(replica, use)


async def test_leaving_our_client_s_generator_cancels_the_request(
    replica: Any, tmp_path: Any, eventually: Callable[..., None]
) -> None:
    file = tmp_path / "held"

    async def use(client: Client) -> None:
        inputs = {"file": str(file), "first": FOUR}
        async with aclosing(client.generate("hold", inputs)) as responses:
            await anext(responses)
            assert file.exists()
        await trio.to_thread.run_sync(eventually, lambda: not file.exists())

    await own(replica, use)


# Compression.


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_read(raw: Any, compression: Any) -> None:
    array = np.zeros(100_000, np.int32)
    request = pb.ModelInferRequest(model_name="echo", id="packed")
    request.inputs.add(name="INPUT", datatype="INT32", shape=[100_000])
    request.raw_input_contents.append(array.tobytes())
    answer = raw.call("ModelInfer", request, compression=compression)
    assert answer.raw_output_contents == [array.tobytes()]
    answers = list(
        raw.stub.ModelStreamInfer(iter([request] * 3), timeout=20, compression=compression)
    )
    assert [answer.infer_response.id for answer in answers] == ["packed"] * 3


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses(triton: Any, algorithm: str) -> None:
    array = np.zeros(50_000, np.int32)
    result = triton.infer(
        "echo", [tensor("INPUT", array)], compression_algorithm=algorithm, client_timeout=20
    )
    np.testing.assert_array_equal(result.as_numpy("OUTPUT"), array)


def test_what_inflates_past_the_limit_is_refused(start_replica: Any, connect: Any) -> None:
    live = start_replica("--app", "behaviours:app", "--message-limit", "1")
    raw = connect(live.address)
    request = pb.ModelInferRequest(model_name="echo")
    request.inputs.add(name="INPUT", datatype="UINT8", shape=[2 << 20])
    request.raw_input_contents.append(bytes(2 << 20))
    for options in ({}, {"compression": grpc.Compression.Gzip}):
        refusal = raw.refusal("ModelInfer", request, **options)
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raw.call("ServerLive", pb.ServerLiveRequest()).live
