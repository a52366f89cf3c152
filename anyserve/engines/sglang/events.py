"""The events in a stream of server-sent events, as SGLang sends them: a line of data each."""

from __future__ import annotations

import attrs

from anyserve.errors import Unavailable

MAX_LINE = 8 << 20
"""Bytes; a text of 100,000 tokens that is sent anew with each token takes one."""


@attrs.define
class Events:
    """Bytes in, events out."""

    _rest: bytes = b""
    """The beginning of a line."""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises `Unavailable` for a line that never ends."""
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise Unavailable(f"SGLang sends a line of more than {MAX_LINE} bytes")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
