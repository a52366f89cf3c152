"""How spans are exported; reads no more than the command line needs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from urllib.parse import urlsplit

_NEEDED = ("opentelemetry", "google.protobuf")
"""What the extra `otel` brings."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add that of the collector."""
    parser.add_argument(
        "--otlp",
        metavar="URL",
        help="an OpenTelemetry collector (http://HOST:4318) that gets a span of each request",
    )


def endpoint(options: argparse.Namespace) -> str | None:
    """Where spans go; None without `--otlp`. Raises `ValueError` where it makes no sense."""
    url: str | None = options.otlp
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--otlp {url!r} is no URL: it looks like http://127.0.0.1:4318")
    if not all(find_spec(name) for name in _NEEDED):
        raise ValueError("--otlp needs more packages: pip install 'anyserve[otel]'")
    return f"{url.rstrip('/')}/v1/traces"
