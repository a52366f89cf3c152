"""The server to compare with: the echo on grpc.aio and Google's protobuf, in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]


async def _infer(request: Any, context: Any) -> Any:
    reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for tensor in request.inputs:
        reply.outputs.add(
            name=tensor.name.replace("INPUT", "OUTPUT"),
            datatype=tensor.datatype,
            shape=tensor.shape,
        )
    reply.raw_output_contents.extend(request.raw_input_contents)
    return reply


async def _serve() -> None:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    method = grpc.unary_unary_rpc_method_handler(
        _infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": method}
    )
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
