"""The work of `benchmarks.work_app` in Google's protobuf, for the servers on grpcio."""

from __future__ import annotations

from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]

from benchmarks.pacing import Stream

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def echo(request: Any) -> Any:
    """Each input comes back as an output."""
    reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for tensor in request.inputs:
        reply.outputs.add(
            name=tensor.name.replace("INPUT", "OUTPUT"),
            datatype=tensor.datatype,
            shape=tensor.shape,
        )
    reply.raw_output_contents.extend(request.raw_input_contents)
    return reply


def wanted(request: Any) -> Stream:
    """The stream that a request asks for."""
    return Stream.parse(np.frombuffer(request.raw_input_contents[0], np.int32))


def message(request: Any, number: int) -> Any:
    """One message of a stream."""
    reply = pb.ModelStreamInferResponse()
    response = reply.infer_response
    response.model_name, response.model_version, response.id = request.model_name, "1", request.id
    response.outputs.add(name="OUTPUT0", datatype="INT32", shape=[1])
    response.raw_output_contents.append(np.array([number], np.int32).tobytes())
    return reply


def path(request: Any) -> str:
    """What a call that hangs is to note its cancellation at: the one element of a BYTES tensor."""
    content: bytes = request.raw_input_contents[0][4:]
    return content.decode()


def service(infer: Any, stream_infer: Any, *, parsed: bool = True) -> Any:
    """KServe v2's service with these two methods, in messages or, if not `parsed`, in bytes."""
    decode = pb.ModelInferRequest.FromString if parsed else None
    return grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService",
        {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                infer,
                request_deserializer=decode,
                response_serializer=pb.ModelInferResponse.SerializeToString if parsed else None,
            ),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                stream_infer,
                request_deserializer=decode,
                response_serializer=(
                    pb.ModelStreamInferResponse.SerializeToString if parsed else None
                ),
            ),
        },
    )
