"""How long the requests of one capability waited and ran, kept where somebody may ask for it."""

from __future__ import annotations

import attrs

from anyserve.histogram import Histogram


@attrs.frozen(eq=False)
class Timings:
    """Of the requests of one capability, in seconds."""

    queue: Histogram = attrs.field(factory=Histogram)
    """From a request's arrival to the first time that it was given to a worker."""
    service: Histogram = attrs.field(factory=Histogram)
    """That it held its slot, also after it was cancelled."""
    first: Histogram = attrs.field(factory=Histogram)
    """From its arrival to its first response."""
    between: Histogram = attrs.field(factory=Histogram)
    """From one response to the next."""
