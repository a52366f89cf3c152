"""How the HTTP port is set up; reads no more than the command line needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import attrs

from anyserve.transport.rpc import MIB

_MOST_KEYS = 100
_NEEDED = ("httptools", "msgspec", "prometheus_client", "jinja2")
"""What the extra `http` brings."""


@attrs.frozen
class HttpConfig:
    """Where HTTP is served, and for whom."""

    host: str
    port: int
    """0: one that is free."""
    keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    """One of them must come along with a request; none: everybody may ask."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may ask, or `*`."""
    max_body: int = 32 * MIB
    """Bytes of a request's body."""


def add_options(parser: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    """Add those of the HTTP port; port: reads its number."""
    add = parser.add_argument_group(
        "HTTP", "OpenAI's API, KServe v2 REST, health and metrics on a port of their own"
    ).add_argument
    add("--http", type=port, metavar="PORT", help="port to serve HTTP on; left out, it is not")
    add("--http-host", default="127.0.0.1", help="address for it (127.0.0.1)")
    add("--http-limit", type=int, default=32, metavar="MIB", help="largest body of a request (32)")
    add("--api-key", metavar="KEY", help="a key that clients send as 'Authorization: Bearer KEY'")
    add("--api-key-file", metavar="FILE", help="a file with such keys, one a line")
    add(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may ask, such as https://host:port, or '*'; may be repeated",
    )


def http_config(options: argparse.Namespace) -> HttpConfig | None:
    """What the options say; None without `--http`. Raises `ValueError` where they make no sense."""
    if options.http is None:
        for name in ("api_key", "api_key_file", "cors"):
            if getattr(options, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} is for the HTTP port: --http is missing"
                )
        return None
    if not all(find_spec(name) for name in _NEEDED):
        raise ValueError("--http needs more packages: pip install 'anyserve[http]'")
    keys = [] if options.api_key is None else [options.api_key]
    if options.api_key_file is not None:
        keys += _read_keys(Path(options.api_key_file))
    if not all(key.strip() for key in keys):
        raise ValueError("--api-key is empty")
    if options.http_limit < 1:
        raise ValueError("--http-limit is 1 or more")
    return HttpConfig(
        options.http_host,
        options.http,
        tuple(keys),
        tuple(options.cors),
        options.http_limit * MIB,
    )


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file {path} can't be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not 0 < len(keys) <= _MOST_KEYS:
        raise ValueError(f"--api-key-file {path} has {len(keys)} keys, not 1 to {_MOST_KEYS}")
    return keys
