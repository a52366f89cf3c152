"""How spans are exported; reads no more than the command line needs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from urllib.parse import urlsplit

_NEEDED = "opentelemetry.exporter.otlp.proto.http"
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
    if not _is_installed():
        raise ValueError("--otlp needs more packages: pip install 'anyserve[otel]'")
    return f"{url.rstrip('/')}/v1/traces"


def _is_installed() -> bool:
    try:
        return find_spec(_NEEDED) is not None
    except ModuleNotFoundError:  # nor is what it lies in
        return False
