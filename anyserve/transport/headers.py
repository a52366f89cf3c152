"""gRPC's use of HTTP/2 headers: request heads, metadata, timeouts and statuses, both ways."""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from typing import TypeAlias

import attrs
from grpclib.metadata import decode_grpc_message, encode_grpc_message, encode_metadata
from multidict import MultiDict

from anyserve.errors import AnyServeError, Internal, InvalidArgument, Status, Unknown, from_status
from anyserve.transport.framing import ENCODINGS
from anyserve.transport.rpc import Metadata, MetadataLike

Headers: TypeAlias = tuple[tuple[str, str], ...]

CONTENT_TYPE = "application/grpc"
TIMEOUT = "grpc-timeout"
_ACCEPTED_CONTENT_TYPE = re.compile(r"application/grpc(\+proto)?(;.*)?")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NOT_METADATA = frozenset({"te", "content-type", "content-length", "user-agent"})
_MAX_STATUS_MESSAGE = 4096
"""Encoded length; clients refuse trailers much longer than that, and lose the status with them."""

_OF_HTTP_STATUS = {
    "400": Status.INTERNAL,
    "401": Status.UNAUTHENTICATED,
    "403": Status.PERMISSION_DENIED,
    "404": Status.UNIMPLEMENTED,
    "429": Status.UNAVAILABLE,
    "502": Status.UNAVAILABLE,
    "503": Status.UNAVAILABLE,
    "504": Status.UNAVAILABLE,
}
"""As gRPC's `http-grpc-status-mapping.md` says; anything else is UNKNOWN."""

RESPONSE_HEADERS: Headers = (
    (":status", "200"),
    ("content-type", CONTENT_TYPE),
    ("grpc-accept-encoding", ",".join(ENCODINGS)),
)
OK: Headers = (("grpc-status", "0"),)


@attrs.frozen
class RequestHead:
    """What a call's headers say, but for the time that it has."""

    path: str
    metadata: tuple[tuple[str, str | bytes], ...]
    encoding: str
    """How its compressed messages are compressed; one of `ENCODINGS`."""


@attrs.frozen
class Refusal(Exception):
    """The answer to a request that is refused for its headers alone."""

    answer: Headers


def parse_request(headers: Headers) -> RequestHead:
    """Read the headers of a call; raises `Refusal` for one that is not a gRPC call."""
    special: dict[str, str] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name.startswith((":", "grpc-")) or name in _NOT_METADATA:
            special[name] = value
        else:
            try:
                _add_metadata(metadata, name, value)
            except InvalidArgument as error:
                raise Refusal(trailers_only(error.status, error.message)) from error
    if special.get(":method") != "POST":
        raise Refusal(((":status", "405"),))
    if not _ACCEPTED_CONTENT_TYPE.fullmatch(special.get("content-type", "")):
        raise Refusal(_http("415", "the content-type must be application/grpc"))
    if special.get("te") != "trailers":
        raise Refusal(_http("400", "the header 'te: trailers' is missing"))
    encoding = special.get("grpc-encoding", "identity")
    if encoding not in ENCODINGS:
        raise Refusal(
            (
                *trailers_only(
                    Status.UNIMPLEMENTED, f"messages compressed with {encoding!r} are not accepted"
                ),
                ("grpc-accept-encoding", ",".join(ENCODINGS)),
            )
        )
    return RequestHead(special.get(":path", ""), tuple(metadata), encoding)


def parse_timeout(headers: Headers) -> float:
    """The budget of a call in seconds, `inf` for none; raises `Refusal` for a malformed one."""
    timeout = math.inf
    for name, value in headers:
        if name == TIMEOUT:
            try:
                timeout = min(timeout, decode_timeout(value))
            except InvalidArgument as error:
                raise Refusal(trailers_only(error.status, error.message)) from error
    return timeout


def request_headers(
    path: str, authority: str, timeout: float, metadata: MetadataLike | None
) -> Headers:
    """The headers of a call to `path` that has `timeout` seconds left."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", CONTENT_TYPE),
        ("user-agent", "anyserve"),
    ]
    if timeout != math.inf:
        headers.append((TIMEOUT, encode_timeout(timeout)))
    headers.extend(encode_metadata(metadata or ()))
    return tuple(headers)


def response_headers(metadata: MetadataLike | None) -> Headers:
    """The headers of an answer that has messages."""
    return (*RESPONSE_HEADERS, *encode_metadata(metadata)) if metadata else RESPONSE_HEADERS


def trailers(
    status: Status, message: str | None = None, metadata: MetadataLike | None = None
) -> Headers:
    """The headers that end an answer."""
    if status is Status.OK and not message and not metadata:
        return OK
    result = [("grpc-status", str(int(status)))]
    if message:
        result.append(("grpc-message", _encode_status_message(message)))
    if metadata:
        result.extend(encode_metadata(metadata))
    return tuple(result)


def trailers_only(
    status: Status, message: str | None = None, metadata: MetadataLike | None = None
) -> Headers:
    """The headers of an answer that is nothing but a status."""
    return (
        (":status", "200"),
        ("content-type", CONTENT_TYPE),
        *trailers(status, message, metadata),
    )


def decode_metadata(headers: Headers) -> Metadata:
    """The metadata among the headers of an answer."""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if not name.startswith((":", "grpc-")) and name not in _NOT_METADATA:
            _add_metadata(metadata, name, value)
    return MultiDict(metadata)


def error_in_response(headers: Headers) -> AnyServeError | None:
    """What is wrong with the first headers of an answer, where they are not those of gRPC."""
    special = dict(headers)
    http_status = special.get(":status")
    if "grpc-status" not in special and http_status != "200":
        status = _OF_HTTP_STATUS.get(str(http_status), Status.UNKNOWN)
        return from_status(status, f"the server answered with HTTP status {http_status}")
    content_type = special.get("content-type", "")
    if "grpc-status" not in special and not _ACCEPTED_CONTENT_TYPE.fullmatch(content_type):
        return Unknown(f"the server answered with content-type {content_type!r}")
    return None


def error_in_trailers(headers: Headers) -> AnyServeError | None:
    """The error that an answer ended with, None for OK."""
    special = dict(headers)
    number = special.get("grpc-status", "")
    if not (number.isascii() and number.isdigit()):
        return Internal("the server ended the call without a status")
    if int(number) == Status.OK:
        return None
    return from_status(int(number), decode_grpc_message(special.get("grpc-message", "")))


def decode_timeout(value: str) -> float:
    """A `grpc-timeout` in seconds; raises `InvalidArgument`."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise InvalidArgument(f"malformed grpc-timeout {value[:40]!r}")
    digits, unit = match.groups()
    return int(digits) * _SECONDS[unit]


def encode_timeout(seconds: float) -> str:
    """A `grpc-timeout` in the finest unit that eight digits can hold; never more than `seconds`."""
    for unit in "num":
        ticks = int(max(seconds, 0.0) / _SECONDS[unit])
        if ticks < 10**8:
            return f"{ticks}{unit}"
    return f"{min(int(seconds), 10**8 - 1)}S"


def _add_metadata(metadata: list[tuple[str, str | bytes]], name: str, value: str) -> None:
    if not name.endswith("-bin"):
        metadata.append((name, value))
        return
    # Binary values may come padded or not, and several of them joined by commas.
    for part in value.split(","):
        encoded = part.strip()
        try:
            decoded = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidArgument(f"metadata {name!r} is not base64") from error
        metadata.append((name, decoded))


def _http(http_status: str, message: str) -> Headers:
    return ((":status", http_status), *trailers_only(Status.UNKNOWN, message)[1:])


def _encode_status_message(message: str) -> str:
    # Lone surrogates, which file names can bring, have no UTF-8.
    encoded = encode_grpc_message(message.encode("utf-8", "replace").decode())
    if len(encoded) <= _MAX_STATUS_MESSAGE:
        return encoded
    # Cut on a whole escape; half a UTF-8 sequence is replaced by the reader.
    cut = encoded[: _MAX_STATUS_MESSAGE - 3]
    return re.sub(r"%[0-9A-F]?$", "", cut) + "..."
