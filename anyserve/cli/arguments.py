"""What the commands have in common: how arguments are read, and how people are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from urllib.parse import unquote

import attrs

from anyserve.errors import AnyServeError
from anyserve.transport.address import TcpAddress, parse_address


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(line, flush=True)


def complain(error: object) -> None:
    """One line on standard error, whatever an app's own error has in it."""
    print("anyserve:", " ".join(str(error).split()), file=sys.stderr)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError("names no capability")
    return found


@attrs.frozen
class AppArgument:
    """An app and the options of what makes it."""

    target: str
    options: Mapping[str, str]


def app(text: str) -> AppArgument:
    """`module:attribute`, or `module:factory?name=value&name=value`; %26 is an ampersand."""
    target, _, query = text.partition("?")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{pair!r} in {text!r} is not of the form name=value")
        if name in options:
            raise argparse.ArgumentTypeError(f"{name} is given twice in {text!r}")
        options[name] = unquote(value)
    return AppArgument(target, options)


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return int(_at_least(text, int(text) if text.isdigit() else 0, 1))


def port(text: str) -> int:
    """A port to listen on; 0 is any that is free."""
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return number


def seconds(text: str) -> float:
    """A time of 0 or more."""
    try:
        return _at_least(text, float(text), 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


def place(text: str) -> TcpAddress:
    """`host:port` of a server that others can reach."""
    try:
        address = parse_address(text)
    except AnyServeError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    if not isinstance(address, TcpAddress) or address.port == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no host:port")
    return address


def _at_least(text: str, value: float, least: float) -> float:
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{text!r} is not {least} or more")
    return value
