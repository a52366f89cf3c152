"""The frames of the worker link, as bytes: no socket and no clock here.

A frame is a 16-byte header (body length u32, kind u8, 3 bytes of padding, call id u64, all
little-endian) and a body. Control frames carry JSON. The frames of a request carry *parts*: the
message without its tensors first, then each raw tensor. A part is inline, or a `Block` of shared
memory. A response is a whole message, or parts where one of them is a block. Both ends are one
version of this package, so there is no negotiation.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from anyserve.errors import AnyServeError, ResourceExhausted, from_status
from anyserve.objects.leases import Block

Buffer = bytes | bytearray | memoryview
Part = Buffer | Block

_HEADER = struct.Struct("<IB3xQ")
_COUNT = struct.Struct("<H")
_PART = struct.Struct("<HQQ")
_REQUEST = struct.Struct("<dHHI")
_ERROR = struct.Struct("<H")
_CALL = struct.Struct("<I?")
_U32 = struct.Struct("<I")
_TOKENS = struct.Struct("<iI")

MAX_BODY = 0xFFFF_FFFF
"""Bytes that a frame's body can have; message limits are well under it."""


INITIAL_CREDIT = 64
"""Responses of one call that may be on their way before the replica has taken one."""
LEASE_THRESHOLD = 1 << 16
"""Parts from this size on go by shared memory, smaller ones in the frame."""


class Kind(enum.IntEnum):
    """What a frame is for; who sends it is on the right."""

    SETUP = 1  # replica: which app to import
    DECLARED = 2  # worker: what the app offers
    LOAD = 3  # replica: run the app's lifespan
    READY = 4  # worker: offers, with what loading found out
    FAILED = 5  # worker: one line on why it can't start
    REQUEST = 6  # replica
    CREDIT = 7  # replica: so many more responses of a call may come
    CANCEL = 8  # replica
    RESPONSE = 9  # worker: a whole ModelInferResponse
    END = 10  # worker: the handler has returned
    ERROR = 11  # worker: the handler has failed or was cancelled
    RELEASE = 12  # replica: a reply's block is free again
    PING = 13  # replica
    PONG = 14  # worker
    TRACE = 15  # replica: start or stop recording
    TRACED = 16  # worker: what was recorded
    PARTS = 17  # worker: a response in parts, some of them lent
    ANSWER = 18  # worker: RESPONSE and END in one
    CALL = 19  # worker: what a call's handler calls; so are those below, of the same call
    CALL_CREDIT = 20  # worker: so many more responses may come
    CALL_CANCEL = 21  # worker: its handler wants no more
    CALLED = 22  # replica: a whole ModelInferResponse
    CALL_END = 23  # replica: there are no more
    CALL_ERROR = 24  # replica: what was called has failed
    TOKENS = 25  # worker: a response has so many tokens more than one, its prompt so many
    CALLED_PARTS = 26  # replica: what is called has answered, in parts, some of them lent
    CALL_TAKEN = 27  # worker: the oldest such answer has been copied
    CONDITION = 28  # worker: the `Condition` of a capability has changed


@attrs.define  # frozen costs more to make, and each message makes some
class Frame:
    """One frame as it was read."""

    kind: int
    call: int
    body: memoryview


class FrameDecoder:
    """Bytes in, frames out. Frames share the memory of the chunk that they came in."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._needed = _HEADER.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return []
            data = bytes(self._pending)
            self._pending = bytearray()
        view = memoryview(data)
        frames = []
        at, end = 0, len(view)
        self._needed = _HEADER.size
        while end - at >= _HEADER.size:
            length, kind, call = _HEADER.unpack_from(view, at)
            if end - at < _HEADER.size + length:
                self._needed = _HEADER.size + length
                break
            start = at + _HEADER.size
            at = start + length
            frames.append(Frame(kind, call, view[start:at]))
        if at < end:
            self._pending += view[at:]
        return frames


def encode(kind: Kind, call: int = 0, body: Buffer = b"") -> bytes:
    """A whole frame with a small body."""
    return _HEADER.pack(len(body), kind, call) + body


def encode_json(kind: Kind, value: Any) -> bytes:
    """A control frame."""
    return encode(kind, 0, json.dumps(value).encode())


def decode_json(frame: Frame) -> Any:
    """The value of a control frame."""
    return json.loads(bytes(frame.body))


def encode_credit(call: int, responses: int) -> bytes:
    return encode(Kind.CREDIT, call, _U32.pack(responses))


def decode_credit(frame: Frame) -> int:
    credit: int = _U32.unpack(frame.body)[0]
    return credit


def encode_tokens(call: int, more: int, prompt: int) -> bytes:
    """`more`: than one; -1 for a response that has none. prompt: those of the prompt, said once."""
    return encode(Kind.TOKENS, call, _TOKENS.pack(more, prompt))


def decode_tokens(frame: Frame) -> tuple[int, int]:
    more, prompt = _TOKENS.unpack(frame.body)
    return more, prompt


def encode_end(call: int, batch: int) -> bytes:
    """`batch`: how many inferences the request counted for (its batch size, or 1)."""
    return encode(Kind.END, call, _U32.pack(batch))


def decode_end(frame: Frame) -> int:
    batch: int = _U32.unpack(frame.body)[0]
    return batch


def encode_answer(call: int, batch: int, response: Sequence[Buffer]) -> bytes:
    """The only response of a call, in pieces, with its end."""
    body = _U32.size + sum(map(len, response))
    header = _HEADER.pack(_checked(body), Kind.ANSWER, call)
    return b"".join((header, _U32.pack(batch), *response))


def decode_answer(frame: Frame) -> tuple[int, memoryview]:
    """The batch, and the message."""
    batch: int = _U32.unpack_from(frame.body)[0]
    return batch, frame.body[_U32.size :]


def encode_response(call: int, response: Sequence[Buffer]) -> bytes:
    """A whole ModelInferResponse, given in pieces; more may come."""
    header = _HEADER.pack(_checked(sum(map(len, response))), Kind.RESPONSE, call)
    return b"".join((header, *response))


def encode_error(call: int, error: AnyServeError) -> bytes:
    return encode(Kind.ERROR, call, error_bytes(error))


def decode_error(frame: Frame) -> AnyServeError:
    return error_of(frame.body)


def error_bytes(error: AnyServeError) -> bytes:
    # A handler's error may quote what is no text, such as a file's name.
    return _ERROR.pack(error.status) + error.message.encode(errors="replace")


def error_of(body: Buffer) -> AnyServeError:
    (status,) = _ERROR.unpack_from(body)
    return from_status(status, bytes(body[_ERROR.size :]).decode(errors="replace"))


def encode_call(call: int, number: int, once: bool, parts: Sequence[Part]) -> list[Buffer]:
    """A CALL frame: `number` among all that the handler of `call` calls.

    once: whether one response is wanted. parts: as those of a REQUEST.
    """
    return _with_parts(Kind.CALL, call, _CALL.pack(number, once), parts)


def decode_call(frame: Frame) -> tuple[int, bool, list[Part]]:
    """The number, whether one response is wanted, and the parts."""
    number, once = _CALL.unpack_from(frame.body)
    return number, once, _decode_parts(frame.body, _CALL.size)


def encode_called_parts(call: int, number: int, parts: Sequence[Part]) -> list[Buffer]:
    """A CALLED_PARTS frame: a ModelInferResponse in pieces."""
    return _with_parts(Kind.CALLED_PARTS, call, _U32.pack(number), parts)


def decode_called_parts(frame: Frame) -> tuple[int, list[Part]]:
    """The number, and the parts."""
    number: int = _U32.unpack_from(frame.body)[0]
    return number, _decode_parts(frame.body, _U32.size)


def encode_called(kind: Kind, call: int, number: int, body: Buffer = b"") -> bytes:
    """Another frame of what a handler calls."""
    return encode(kind, call, _U32.pack(number) + body)


def decode_called(frame: Frame) -> tuple[int, memoryview]:
    """The number, and what the frame says."""
    number: int = _U32.unpack_from(frame.body)[0]
    return number, frame.body[_U32.size :]


def encode_release(block: Block) -> bytes:
    return encode(Kind.RELEASE, 0, b"".join(_encode_parts([block])))


def decode_release(frame: Frame) -> Block:
    (block,) = _decode_parts(frame.body, 0)
    assert isinstance(block, Block)
    return block


@attrs.define
class RequestBody:
    """What a REQUEST frame says."""

    budget: float
    """Seconds that remain until the deadline; infinity where there is none."""
    offer: int
    """Index of the capability in the worker's READY frame."""
    request_id: str
    extra: Mapping[str, Any]
    """Metadata, sequence and client regions; mostly empty."""
    parts: Sequence[Part]
    """The ModelInferRequest without its raw contents, then the raw contents; flat bytes."""


def encode_request(call: int, request: RequestBody) -> list[Buffer]:
    """A REQUEST frame in pieces, so that inline tensors need no copy.

    Raises `ResourceExhausted` for one that no frame can hold.
    """
    identity = request.request_id.encode()
    extra = json.dumps(request.extra).encode() if request.extra else b""
    fixed = _REQUEST.pack(request.budget, request.offer, len(identity), len(extra))
    head = b"".join((fixed, identity, extra))
    return _with_parts(Kind.REQUEST, call, head, request.parts)


def decode_request(frame: Frame) -> RequestBody:
    body = frame.body
    budget, offer, id_length, extra_length = _REQUEST.unpack_from(body)
    at = _REQUEST.size + id_length
    request_id = str(body[_REQUEST.size : at], "utf-8")
    extra = json.loads(bytes(body[at : at + extra_length])) if extra_length else {}
    return RequestBody(budget, offer, request_id, extra, _decode_parts(body, at + extra_length))


def encode_parts(call: int, parts: Sequence[Part]) -> list[Buffer]:
    """A PARTS frame: a ModelInferResponse in pieces."""
    return _with_parts(Kind.PARTS, call, b"", parts)


def decode_parts(frame: Frame) -> list[Part]:
    return _decode_parts(frame.body, 0)


def _checked(length: int) -> int:
    if length > MAX_BODY:
        raise ResourceExhausted(f"{length} bytes are more than a frame's body can have, {MAX_BODY}")
    return length


def _with_parts(kind: Kind, call: int, head: bytes, parts: Sequence[Part]) -> list[Buffer]:
    pieces = _encode_parts(parts)
    length = _checked(len(head) + sum(map(len, pieces)))
    return [_HEADER.pack(length, kind, call) + head, *pieces]


def _encode_parts(parts: Sequence[Part]) -> list[Buffer]:
    table = bytearray(_COUNT.pack(len(parts)))
    pieces: list[Buffer] = [table]
    for part in parts:
        if isinstance(part, Block):
            name = part.segment.encode()
            table += _PART.pack(len(name), part.offset, part.length) + name
        else:
            table += _PART.pack(0, 0, len(part))
            pieces.append(part)
    return pieces


def _decode_parts(body: memoryview, at: int) -> list[Part]:
    """The parts whose table is at `at`; what is inline comes behind the table, in order."""
    (count,) = _COUNT.unpack_from(body, at)
    at += _COUNT.size
    found: list[Block | int] = []
    for _ in range(count):
        name_length, offset, length = _PART.unpack_from(body, at)
        at += _PART.size
        if name_length:
            name = bytes(body[at : at + name_length]).decode()
            at += name_length
            found.append(Block(name, offset, length))
        else:
            found.append(length)
    parts: list[Part] = []
    for part in found:
        if isinstance(part, int):
            parts.append(body[at : at + part])
            at += part
        else:
            parts.append(part)
    return parts
