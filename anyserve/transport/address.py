"""Where a server listens and a channel connects: `host:port` or `unix:/path`."""

from __future__ import annotations

import attrs

from anyserve.errors import InvalidArgument

_UNIX = "unix:"


@attrs.frozen
class TcpAddress:
    """A host name or IP address and a port; port 0 lets the system choose, when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return _UNIX + self.path


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """The address that `text` names; raises `InvalidArgument` when it names none."""
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if not path:
            raise InvalidArgument(f"address {text!r} has no path")
        return UnixAddress(path)
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not bracketed):
        raise InvalidArgument(f"address {text!r} is neither host:port nor unix:/path")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidArgument(f"address {text!r} has no port between 0 and 65535")
    return TcpAddress(host[1:-1] if bracketed else host, int(port))
