"""What loading an app has in common wherever it runs: the bound on its end, failures in words."""

from __future__ import annotations

from anyserve.errors import AnyServeError, innermost

UNLOAD_TIMEOUT = 4.0
"""Seconds that an app's lifespan has for its clean-up: one less than a replica gives a worker."""


def cannot_load(name: str, error: Exception) -> str:
    """One line on why `name` could not load its app."""
    cause = innermost(error)
    why = cause.message if isinstance(cause, AnyServeError) else f"{type(cause).__name__}: {cause}"
    return f"{name} can't load its app: {why}"
