"""Streams that survive their replica: what is kept of one, and what goes with it to the next.

Nothing is read while all is well. Only when a replica is lost are the token ids looked for in what
it has said so far.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import attrs
from anyserve_protos.infer_wire import WireError, scan_tensor_names, stream_content
from anyserve_protos.inference import ModelInferRequest
from anyserve_protos.inference import ModelInferRequestInferRequestedOutputTensor as WantedOutput
from anyserve_protos.response_head import encode_response_head
from anyserve_protos.response_outputs import ResponseReader

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Unavailable
from anyserve.replica.handback import MODEL_STREAM_INFER
from anyserve.replica.stream_infer import IS_FINAL
from anyserve.stream_errors import is_error, unwrapped
from anyserve_scheduler.fleet import OfferView
from anyserve_scheduler.gateway.incoming import Incoming

RESUME = "resume"
"""Request parameter: false where a request must not go on at another replica."""
RETURN_IDS = "return_token_ids"
RESUME_IDS = "resume_token_ids"
TOKEN_IDS = "token_ids"
TEXT = "text_output"

KEPT_LIMIT = 4 << 20
"""Bytes of one request and its responses that are kept."""
ROOM = 256 << 20
"""Bytes that are kept of all requests together."""

_ASKS = encode_response_head("", "", "", {RETURN_IDS: True}, ())  # parameters are alike in requests
_ASKS_OUTPUT = bytes(ModelInferRequest(outputs=[WantedOutput(name=TOKEN_IDS)]))
_ID_BYTES = 4
_LENGTH = 4
"""Bytes before an element of a BYTES tensor."""


@attrs.define
class Room:
    """What may be kept of all requests together."""

    free: int = ROOM
    """Bytes."""


class Kept:
    """What is kept of one request, so that it can go on where its replica is lost; once."""

    def __init__(self, request: Incoming, behind: bytes, room: Room) -> None:
        """behind: what `asking` says."""
        self.behind = behind
        """What goes to a replica behind the request's own bytes."""
        self.failure: AnyServeError | None = None
        """What the replica has said last, where that is an error; its client was not told."""
        self.resumed = False
        """Whether it goes on elsewhere."""
        self._request = request
        self._messages: list[bytes] = []
        self._room = room
        self._size = 0
        self._why = ""
        """Why nothing is kept any more."""
        self._add(len(request.body), ())

    def take(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Keep what the replica has said; gives what of it is for the client, maybe nothing."""
        if self._request.path != MODEL_STREAM_INFER:
            self._forget("it was answered")
            self._request.body = b""
            return messages
        if is_error(messages[-1]):
            failure = unwrapped(messages[-1])
            if isinstance(failure, AnyServeError):
                self.failure = failure
                messages = messages[:-1]
        if self.resumed:
            self._forget("it has done so once")
        elif not self._why:
            self._add(sum(map(len, messages)), messages)
        if self._why:
            self._request.body = b""
        return messages

    def go_on(self, need: Capability, offer: OfferView) -> Capability | None:
        """Have it go on after what was said; None where that is the whole answer.

        need, offer: what it needed, and what it was sent to. Gives what it needs from now on.
        Raises `Unavailable` where it can't go on.
        """
        if self._why:
            raise Unavailable(f"it can't go on elsewhere: {self._why}")
        if self._messages:
            ids = _token_ids(self._messages)
            if ids is None:
                return None
            before = _ids_before(self._request)
            resume = {RESUME_IDS: json.dumps([*before, *ids], separators=(",", ":"))}
            self.behind += encode_response_head("", "", "", resume, ())
            need = _of_same_model(need, offer)
        self.drop()
        self.failure = None
        self.resumed = True
        return need

    def drop(self) -> None:
        """Keep no answers any more."""
        self._why = "it is over"
        self._messages.clear()
        self._room.free += self._size
        self._size = 0

    def _forget(self, why: str) -> None:
        """Once it has been answered, it goes nowhere else any more."""
        self.drop()
        self._why = why

    def _add(self, size: int, messages: Sequence[bytes]) -> None:
        self._size += size
        self._room.free -= size
        self._messages += messages
        if self._size > KEPT_LIMIT:
            self._forget(f"it is more than {KEPT_LIMIT >> 20} MiB")
        elif self._room.free < 0:
            self._forget(f"all streams together are more than {ROOM >> 20} MiB")


def kept_of(request: Incoming, offer: OfferView, room: Room) -> Kept | None:
    """What is to be kept of a request that is sent to `offer`; None where it is not resumed."""
    if not offer.resumable or request.permit.spent is not None:
        return None
    behind = asking(request)
    return None if behind is None else Kept(request, behind, room)


def asking(request: Incoming) -> bytes | None:
    """What is put behind a request so that its responses bring token ids.

    None where it is not to be resumed, or can't be: in a sequence, and with token ids to go on
    after as an input.
    """
    parameters = request.parameters
    if parameters.get(RESUME) is False or "sequence_id" in parameters:
        return None
    try:
        inputs, outputs = scan_tensor_names(request.body)
    except WireError:
        return None  # its replica says what is wrong with it
    if RESUME_IDS in inputs:
        return None
    if request.path != MODEL_STREAM_INFER:
        return b""  # nothing comes before the answer
    if RETURN_IDS.encode() in request.body:
        return b""  # the client's own word, somewhere
    return _ASKS + _ASKS_OUTPUT if outputs and TOKEN_IDS not in outputs else _ASKS


def _of_same_model(need: Capability, offer: OfferView) -> Capability:
    """What a text needs that was begun by `offer`: token ids mean the same to its model alone."""
    model = offer.capability.attributes.get("model")
    attributes = need.attributes if model is None else {**need.attributes, "model": model}
    return attrs.evolve(need, attributes=attributes, version=offer.capability.version)


def _ids_before(request: Incoming) -> list[int]:
    """Those that the client itself has the text go on after; raises `Unavailable` for others."""
    try:
        ids = json.loads(str(request.parameters.get(RESUME_IDS, "[]")))
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list):
        raise Unavailable(f"it can't go on elsewhere: its {RESUME_IDS} are no list")
    return ids


def _token_ids(messages: Sequence[bytes]) -> list[int] | None:
    """Of all ModelStreamInferResponses of one text; None where they bring its end, too.

    Raises `Unavailable` where they do not tell.
    """
    if messages[-1].endswith(IS_FINAL):
        return None
    reader = ResponseReader()
    ids: list[int] = []
    outputs: dict[str, bytes] = {}
    unknown = False
    try:
        for message in messages:
            _, response = stream_content(message)
            outputs = reader.outputs(response)
            content = outputs[TOKEN_IDS]
            unknown = unknown or (not content and outputs.get(TEXT, b"")[_LENGTH:] != b"")
            ids += struct.unpack(f"<{len(content) // _ID_BYTES}i", content)
    except (WireError, KeyError, struct.error):
        raise Unavailable("it can't go on elsewhere: its responses have no token ids") from None
    if "index" in outputs:
        raise Unavailable("it can't go on elsewhere: it has several texts")
    if outputs.get("finish_reason", b"")[_LENGTH:]:
        return None
    if unknown:
        raise Unavailable("it can't go on elsewhere: the token ids of some of it are not known")
    return ids
