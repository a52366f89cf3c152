"""What ends a benchmark without figures."""

from __future__ import annotations


class CannotMeasure(Exception):
    """The machine lacks something, or a server gave wrong answers; one line for people."""
