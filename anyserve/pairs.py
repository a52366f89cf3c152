"""Pairs: one engine computes a prompt, another goes on with it, and where the two meet.

The offer of such an engine says which half it is. The scheduler sends a request to one of each,
with the same rendezvous, as request parameters that only the scheduler may set.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from anyserve.capability import Attribute, Capability
from anyserve.errors import InvalidArgument, Unavailable, elsewhere

DISAGGREGATION = "disaggregation"
"""The attribute of an offer that says which half of a pair it is."""
PREFILL = "prefill"
"""The half that computes prompts; also the capability that it is."""
DECODE = "decode"
"""The half that goes on with them."""
MODEL = "model"
"""The attribute of an offer that names its model, which two halves have in common."""
HOST = "bootstrap_host"
PORT = "bootstrap_port"
"""Attributes of a prefill half, and parameters of a request."""
ROOM = "bootstrap_room"
"""The parameter that tells one request from the others."""
ROOMS = 1 << 63
"""Rooms are counted from 0 to below this."""
_PARAMETERS = (HOST, PORT, ROOM)


@attrs.frozen
class Rendezvous:
    """Where the halves of one request meet."""

    host: str
    port: int
    room: int

    @classmethod
    def read(cls, parameters: Mapping[str, Attribute]) -> Rendezvous | None:
        """What a request's parameters say; None where they say nothing of it."""
        host, port, room = (parameters.get(name) for name in _PARAMETERS)
        if isinstance(host, str) and isinstance(port, int) and isinstance(room, int):
            return cls(host, port, room)
        return None

    @property
    def parameters(self) -> dict[str, Attribute]:
        """What `read` reads."""
        return {HOST: self.host, PORT: self.port, ROOM: self.room}

    def sample(self, index: int) -> Rendezvous:
        """That of one of several texts of the request; both halves count them alike."""
        return attrs.evolve(self, room=(self.room + index) % ROOMS)


def is_half(capability: Capability) -> bool:
    """Whether an offer is of use in a pair alone."""
    return DISAGGREGATION in capability.attributes


def is_placed(parameters: Mapping[str, Attribute]) -> bool:
    """Whether a request says anything of where halves meet."""
    return any(name in parameters for name in _PARAMETERS)


def check_client(parameters: Mapping[str, Attribute]) -> None:
    """Raise `InvalidArgument` where a client says what only the scheduler may say."""
    for name in _PARAMETERS:
        if name in parameters:
            raise InvalidArgument(f"{name}: only the scheduler says where halves of a pair meet")


def check_paired(offer: Capability, parameters: Mapping[str, Attribute]) -> None:
    """Raise `Unavailable`, marked as served `elsewhere`, for a half that was asked alone."""
    if is_half(offer) and ROOM not in parameters:
        raise elsewhere(
            Unavailable(
                f"{offer.name} is half of a pair here ({offer.attributes[DISAGGREGATION]}): ask the"
                " scheduler, which finds the other half"
            )
        )
