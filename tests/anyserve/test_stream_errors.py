"""What a failed request of a stream says, and what is read of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from anyserve.errors import Internal, Status, Unknown, from_status
from anyserve.stream_errors import is_error, stream_error, unwrapped


@given(st.sampled_from([status for status in Status if status]), st.text(min_size=1), st.text())
def test_an_error_is_read_as_it_was(status: Status, message: str, identity: str) -> None:
    error = from_status(status, message)
    found = unwrapped(stream_error(error, identity))
    assert (type(found), str(found)) == (type(error), message)
    assert is_error(stream_error(error, identity))


def test_it_is_what_tritons_clients_read() -> None:
    data = stream_error(Internal("broken"), "7")
    message = service_pb2.ModelStreamInferResponse.FromString(data)
    assert (message.error_message, message.infer_response.id) == ("broken", "7")


def test_another_servers_error_has_no_status() -> None:
    message = service_pb2.ModelStreamInferResponse(error_message="broken")
    found = unwrapped(message.SerializeToString())
    assert (type(found), str(found)) == (Unknown, "broken")


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x12\x01"])
def test_what_is_no_message_of_a_stream_is_the_servers_fault(data: bytes) -> None:
    assert isinstance(unwrapped(data), Internal)


def test_a_response_comes_as_it_is() -> None:
    response = service_pb2.ModelInferResponse(model_name="echo", id="7")
    message = service_pb2.ModelStreamInferResponse(infer_response=response)
    found = unwrapped(message.SerializeToString())
    assert isinstance(found, memoryview)
    assert bytes(found) == response.SerializeToString()
