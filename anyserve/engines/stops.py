"""Ends a text before the first of its stop strings, for engines whose model knows none."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from anyserve.engines.interface import Delta


@attrs.define
class StopStrings:
    """Lets the pieces of one text through that can't be part of a stop string."""

    stops: Sequence[str]
    _held: list[Delta] = attrs.field(factory=list)
    """Pieces whose end may be the beginning of a stop string, the oldest first."""

    def add(self, delta: Delta) -> Delta | None:
        """What may be given now that `delta` has come; None where that is nothing.

        It has a finish reason where `delta` has one or a stop string is complete; then nothing may
        follow. Pieces go as a whole, so that their token ids are those of the text; of a piece
        that a stop string cuts, the text before it goes without them.
        """
        self._held.append(delta)
        text = "".join([piece.text for piece in self._held])
        ends = [at for at in map(text.find, self.stops) if at >= 0]
        if ends:
            return self._stopped(text[: min(ends)], delta)
        free = len(text) if delta.finish_reason is not None else len(text) - self._begun(text)
        given = self._take(free)
        if not given:
            return None
        return _joined("".join([piece.text for piece in given]), given, given[-1])

    def _begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop string."""
        longest = min(len(text), max(map(len, self.stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0

    def _take(self, free: int) -> list[Delta]:
        """The oldest pieces held, as far as they lie within the first `free` characters."""
        count = 0
        for piece in self._held:
            free -= len(piece.text)
            if free < 0:
                break
            count += 1
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _stopped(self, text: str, last: Delta) -> Delta:
        given = _joined(text, self._take(len(text)), last)
        return attrs.evolve(given, finish_reason="stop")


def _joined(text: str, pieces: Sequence[Delta], last: Delta) -> Delta:
    """`pieces` as one that ends as `last` does."""
    return attrs.evolve(
        last,
        text=text,
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(token for piece in pieces for token in piece.logprobs),
    )
