"""Worker options arrive as keyword strings; here they become what engines are set up with."""

from __future__ import annotations


def count(name: str, text: str, least: int, most: int) -> int:
    """The whole number in `text`; raises `ValueError` naming the option and its range."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise ValueError(f"{name} is a whole number from {least} to {most}, not {text!r}")
    return value
