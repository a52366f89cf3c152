"""The descriptors of the .proto files, as server reflection hands them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import attrs

from .wire import LENGTH, fields, text

# Field numbers in google/protobuf/descriptor.proto.
_SET_FILE = 1
_FILE_NAME, _FILE_PACKAGE, _FILE_IMPORT = 1, 2, 3
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_NAME = 1  # of whatever has one
_PARTS = {
    # What has a name of its own inside each kind: the field that holds it, and its kind.
    "message": {2: "field", 3: "message", 4: "enum", 8: "oneof"},
    "service": {2: "method"},
}
_ENUM_VALUE = 2


@attrs.frozen
class ProtoFile:
    """One .proto file."""

    name: str
    """As other files import it, such as `inference.proto`."""
    data: bytes
    """The serialised FileDescriptorProto."""
    imports: tuple[str, ...]
    services: tuple[str, ...]
    """Full names."""
    symbols: frozenset[str]
    """Full names of all that the file declares: services, methods, messages, fields, enums, …"""


@cache
def proto_files() -> Mapping[str, ProtoFile]:
    """All files by their name."""
    data = files(__package__).joinpath("descriptors.binpb").read_bytes()
    loaded = [_load(data[first:last]) for first, last in _parts(data, _SET_FILE)]
    return MappingProxyType({file.name: file for file in loaded})


def _load(data: bytes) -> ProtoFile:
    package = _name(data, _FILE_PACKAGE)
    services = tuple(
        f"{package}.{_name(data[first:last])}" for first, last in _parts(data, _FILE_SERVICE)
    )
    symbols: set[str] = set()
    for number, kind in (
        (_FILE_MESSAGE, "message"),
        (_FILE_ENUM, "enum"),
        (_FILE_SERVICE, "service"),
    ):
        for first, last in _parts(data, number):
            symbols.update(_symbols(data[first:last], kind, package))
    return ProtoFile(
        name=_name(data, _FILE_NAME),
        data=data,
        imports=tuple(text(data, *span) for span in _parts(data, _FILE_IMPORT)),
        services=services,
        symbols=frozenset(symbols),
    )


def _symbols(data: bytes, kind: str, scope: str) -> Iterator[str]:
    """The full names that a descriptor declares, its own first."""
    name = f"{scope}.{_name(data)}"
    yield name
    if kind == "enum":  # whose values are named beside it, not inside it
        for first, last in _parts(data, _ENUM_VALUE):
            yield f"{scope}.{_name(data[first:last])}"
    for number, part_kind in _PARTS.get(kind, {}).items():
        for first, last in _parts(data, number):
            yield from _symbols(data[first:last], part_kind, name)


def _name(data: bytes, number: int = _NAME) -> str:
    ((first, last),) = _parts(data, number)
    return text(data, first, last)


def _parts(data: bytes, number: int) -> Iterator[tuple[int, int]]:
    """Where the messages or strings in the field `number` are."""
    for tag, first, last in fields(data, 0, len(data)):
        if tag == number << 3 | LENGTH:
            yield first, last
