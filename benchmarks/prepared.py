"""What servers without a codec know: the methods' paths, and a stream already encoded.

Imports nothing, so that it adds nothing to the memory of a server.
"""

from __future__ import annotations

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
MESSAGES = 256
"""Messages of each stream that is measured."""


def stream() -> list[bytes]:
    """The ModelStreamInferResponses of one stream: an INT32 tensor with the message's number."""
    return [_message(number) for number in range(MESSAGES)]


def _message(number: int) -> bytes:
    tensor = _field(1, b"OUTPUT0") + _field(2, b"INT32") + _field(3, b"\1")
    names = _field(1, b"stream") + _field(2, b"1") + _field(3, b"1")
    return _field(2, names + _field(5, tensor) + _field(6, number.to_bytes(4, "little")))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field; packed varints are one too."""
    return bytes([number << 3 | 2, len(content)]) + content
