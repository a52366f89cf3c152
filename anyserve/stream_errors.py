"""How a request of a stream fails: a message of the stream, with the status in a parameter."""

from __future__ import annotations

from anyserve_protos import codec
from anyserve_protos.infer_wire import WireError, stream_content
from anyserve_protos.inference import (
    InferParameter,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from anyserve.errors import AnyServeError, Internal, Status, from_status

STATUS = "anyserve_status"
"""Parameter of the response beside an `error_message`: the gRPC status of the request, which has
no other place in a stream."""
_ERROR_MESSAGE = b"\x0a"
"""The tag of the field, which comes first."""


def stream_error(error: AnyServeError, identity: str) -> bytes:
    """What answers a request of a stream that failed."""
    status = InferParameter(int64_param=int(error.status))
    response = ModelInferResponse(id=identity, parameters={STATUS: status})
    return bytes(ModelStreamInferResponse(error_message=error.message, infer_response=response))


def is_error(message: bytes) -> bool:
    """Whether a ModelStreamInferResponse of a replica is one that `stream_error` has made."""
    return message.startswith(_ERROR_MESSAGE)


def unwrapped(message: bytes) -> memoryview | AnyServeError:
    """The ModelInferResponse in a ModelStreamInferResponse, or what its request failed with."""
    try:
        text, response = stream_content(message)
        if not text:
            return response
        found = codec.decode(ModelInferResponse, bytes(response)).parameters.get(STATUS)
    except WireError as error:
        return Internal(f"the answer is no ModelStreamInferResponse: {error}")
    status = None if found is None else found.int64_param
    return from_status(Status.UNKNOWN if status is None else status, text)
