"""KServe v2 tensors ⇄ numpy arrays, checked: shape against length, datatype against contents.

On the wire a tensor is raw (row-major, little-endian; BYTES elements each behind their length) or
typed (a list of numbers in the message). Arrays of raw numbers are views and copy nothing; they may
be unaligned. All arrays that come from here are read-only. BYTES are object arrays of `bytes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
from anyserve_protos.infer_request import InferRequest, InputTensor
from anyserve_protos.wire import Buffer

from anyserve.errors import InvalidArgument
from anyserve.region_parameters import REGION

Array: TypeAlias = npt.NDArray[Any]
Contents: TypeAlias = Mapping[str, Sequence[Any]]
"""Typed contents: elements by the field of InferTensorContents."""

MAX_DIMENSIONS = 64
"""As many as numpy has."""
MAX_STRINGS = 1 << 18
"""Elements of BYTES in the raw inputs of a request: each becomes a Python object."""

_MAX_ELEMENTS = (1 << 63) // 8 - 1
_LENGTH_SIZE = 4  # of the length before each element of BYTES
_SHORT = 64
"""Bytes that are looked through without numpy."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP16": "fp32_contents",
    "BF16": "fp32_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents that holds the elements of each datatype."""
_CONTENT_FIELDS = tuple(dict.fromkeys(_CONTENTS.values()))


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The dtype of arrays of a KServe datatype; raises `InvalidArgument` for an unknown one."""
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        if datatype != "BF16":
            raise InvalidArgument(f"datatype {datatype!r} is none of {', '.join(_CONTENTS)}")
        # Imported where it is needed alone; its byte order can't be said, it is the machine's.
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


def datatype_of(array: Array) -> str:
    """The KServe datatype of an array; raises `InvalidArgument` where there is none.

    Strings of any kind are BYTES; object arrays are too, whatever is in them.
    """
    dtype = array.dtype
    datatype = _DATATYPES.get(dtype)
    if datatype is not None:
        return datatype
    if dtype.kind in "SUT":
        return "BYTES"
    if dtype.name == "bfloat16":
        return "BF16"
    if dtype.byteorder == ">" and (datatype := _DATATYPES.get(dtype.newbyteorder("<"))):
        return datatype
    raise InvalidArgument(f"arrays of {dtype} have no KServe datatype")


def element_count(shape: Sequence[int]) -> int:
    """The elements that a tensor of `shape` has, one for the empty shape.

    Raises `InvalidArgument` for a negative dimension and for what no array can be.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidArgument(f"shape has {len(shape)} dimensions, over {MAX_DIMENSIONS}")
    if any(dimension < 0 for dimension in shape):
        raise InvalidArgument(f"shape {list(shape)} has a negative dimension")
    # Empty dimensions do not make up for others that overflow, for numpy neither.
    if math.prod(dimension or 1 for dimension in shape) > _MAX_ELEMENTS:
        raise InvalidArgument(f"shape {list(shape)} is too large")
    return math.prod(shape)


@attrs.frozen
class Layout:
    """How the raw contents of a tensor lie; worked out once for many tensors that are alike."""

    what: str
    """How errors call the tensor, such as `input 'x'`."""
    datatype: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int
    """Elements."""

    @classmethod
    def of(cls, what: str, datatype: str, shape: Sequence[int]) -> Layout:
        """Raises `InvalidArgument` for an unknown datatype and an impossible shape."""
        return cls(what, datatype, tuple(shape), *_layout(what, datatype, shape))

    def decode(self, raw: Buffer) -> Array:
        """The array in raw contents: for numbers a view of `raw`.

        Raises `InvalidArgument` unless `raw` holds exactly what datatype and shape say.
        """
        if self.datatype == "BYTES":
            return _objects(_split_elements(self.what, self.count, raw), self.shape)
        if len(raw) != self.count * self.dtype.itemsize:
            raise InvalidArgument(
                f"{self.what}: {len(raw)} bytes of raw contents, but {self.datatype} of shape"
                f" {list(self.shape)} has {self.count * self.dtype.itemsize}"
            )
        array: Array = np.ndarray(self.shape, self.dtype, raw)
        if self.datatype == "BOOL" and not _is_bool(raw):
            raise InvalidArgument(f"{self.what}: an element of BOOL is neither 0 nor 1")
        array.flags.writeable = False
        return array


def _is_bool(raw: Buffer) -> bool:
    """Whether all bytes are 0 or 1."""
    if len(raw) > _SHORT:
        return bool(np.frombuffer(raw, np.uint8).max() <= 1)
    # numpy takes ten times as long for one flag, of which many requests have one.
    return not bytes(raw).strip(b"\0\1")


def decode_raw(what: str, datatype: str, shape: Sequence[int], raw: Buffer) -> Array:
    """The array in raw contents; raises as `Layout.of` and `Layout.decode`."""
    return Layout.of(what, datatype, shape).decode(raw)


def decode_contents(what: str, datatype: str, shape: Sequence[int], contents: Contents) -> Array:
    """The array in typed contents; FP16 and BF16 are rounded from the FP32 that they come as.

    what: how errors call the tensor, such as `input 'x'`. Raises `InvalidArgument` unless the
    datatype's own field holds as many elements as the shape has, all in range, and no other
    field holds any.
    """
    dtype, count = _layout(what, datatype, shape)
    field = _CONTENTS[datatype]
    for other in _filled(contents):
        if other != field:
            raise InvalidArgument(f"{what}: contents are in {other}; {datatype} has {field}")
    values = contents.get(field, ())
    if len(values) != count:
        raise InvalidArgument(
            f"{what}: {len(values)} elements in {field}, but shape {list(shape)} has {count}"
        )
    if datatype == "BYTES":
        return _objects(values, shape)
    try:
        array = np.array(values, np.float32 if field == "fp32_contents" else dtype)
    except OverflowError as error:
        raise InvalidArgument(f"{what}: an element is out of range: {error}") from error
    if array.dtype != dtype:
        array = _round(what, datatype, array, dtype)
    array.flags.writeable = False
    return array.reshape(tuple(shape))


def as_array(value: npt.ArrayLike, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as the array that goes on the wire.

    dtype: what plain Python values become; without it ints are INT64 and floats FP64. An array is
    taken as it is.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str | bytes):
        return np.array([value], dtype=np.object_)
    if isinstance(value, list) and value and all(isinstance(item, str | bytes) for item in value):
        return np.array(value, dtype=np.object_)
    array = np.asarray(value, dtype=dtype)
    return array.reshape(1) if array.ndim == 0 else array


def encode_raw(array: Array) -> tuple[str, tuple[int, ...], Buffer]:
    """Datatype, shape and raw contents of an array.

    The contents are a view of the array where it is contiguous and little-endian. Elements of
    object arrays are `bytes`, or `str` which become UTF-8. Raises `InvalidArgument` for what has
    no KServe datatype.
    """
    datatype = datatype_of(array)
    if datatype == "BYTES":
        pieces: list[bytes] = []
        for element in _encoded_elements(array):
            pieces += (len(element).to_bytes(_LENGTH_SIZE, "little"), element)
        return datatype, array.shape, b"".join(pieces)
    flat = np.asarray(array, numpy_dtype(datatype), order="C").reshape(-1)
    return datatype, array.shape, flat.view(np.uint8).data


def decode_inputs(
    request: InferRequest, raw: Sequence[Buffer], shared: Mapping[str, Buffer]
) -> dict[str, Array]:
    """The inputs of a request by name.

    request: without its raw contents, which are `raw`: one for each input that is not in shared
    memory, in order, or none at all where the inputs are typed. shared: the bytes of each input
    that has the parameter `shared_memory_region`, by the input's name. Raises `InvalidArgument`
    naming the input, or what else is wrong.
    """
    arrays: dict[str, Array] = {}
    strings = 0
    unused = iter(raw)
    if raw:
        expected = sum(REGION not in tensor.parameters for tensor in request.inputs)
        if len(raw) != expected:
            raise InvalidArgument(
                f"raw_input_contents has {len(raw)} entries for {expected} inputs outside of"
                " shared memory"
            )
    for tensor in request.inputs:
        name = tensor.name
        if not name:
            raise InvalidArgument("an input has no name")
        if name in arrays:
            raise InvalidArgument(f"input {name!r} is there twice")
        in_region = REGION in tensor.parameters
        if raw or in_region:
            _refuse_typed(tensor, "in shared memory" if in_region else "raw")
            layout = Layout.of(f"input {name!r}", tensor.datatype, tensor.shape)
            strings += layout.count if layout.datatype == "BYTES" else 0
            if strings > MAX_STRINGS:
                raise InvalidArgument(
                    f"input {name!r}: the request has over {MAX_STRINGS} elements of BYTES"
                )
            arrays[name] = layout.decode(shared[name] if in_region else next(unused))
        else:
            arrays[name] = _decode_typed(tensor)
    return arrays


def _refuse_typed(tensor: InputTensor, place: str) -> None:
    if filled := _filled(tensor.contents):
        raise InvalidArgument(
            f"input {tensor.name!r}: contents are both {place} and in {filled[0]}"
        )


def _decode_typed(tensor: InputTensor) -> Array:
    what = f"input {tensor.name!r}"
    if not _filled(tensor.contents) and _layout(what, tensor.datatype, tensor.shape)[1]:
        raise InvalidArgument(f"{what} has no contents: neither raw, typed nor in shared memory")
    return decode_contents(what, tensor.datatype, tensor.shape, tensor.contents)


def _filled(contents: Contents) -> list[str]:
    return [field for field in _CONTENT_FIELDS if contents.get(field)]


def _layout(what: str, datatype: str, shape: Sequence[int]) -> tuple[np.dtype[Any], int]:
    try:
        return numpy_dtype(datatype), element_count(shape)
    except InvalidArgument as error:
        raise InvalidArgument(f"{what}: {error.message}") from None


def _split_elements(what: str, count: int, raw: Buffer) -> list[bytes]:
    """The elements of BYTES contents; nothing is allocated for those that are not there."""
    view = memoryview(raw)
    end = len(view)
    elements: list[bytes] = []
    position = 0
    while len(elements) < count:
        start = position + _LENGTH_SIZE
        length = int.from_bytes(view[position:start], "little")
        position = start + length
        if start > end:
            raise InvalidArgument(f"{what}: {len(elements)} elements of BYTES, not {count}")
        if position > end:
            raise InvalidArgument(
                f"{what}: element {len(elements)} of BYTES has {length} bytes by its length prefix,"
                f" {end - start} are left"
            )
        elements.append(view[start:position].tobytes())
    if position != end:
        raise InvalidArgument(
            f"{what}: {end - position} bytes behind the {count} elements of BYTES"
        )
    return elements


def _objects(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    array.flags.writeable = False
    return array.reshape(tuple(shape))


def _round(what: str, datatype: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """From FP32 to a smaller type; finite elements stay finite, or there is an error."""
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if np.any(np.isinf(rounded) & np.isfinite(array)):
        raise InvalidArgument(f"{what}: an element is out of range for {datatype}")
    return rounded


def _encoded_elements(array: Array) -> Iterator[bytes]:
    for element in array.reshape(-1).tolist():
        if isinstance(element, bytes):
            yield element
        elif isinstance(element, str):
            try:
                yield element.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgument(f"a string is not UTF-8: {error.reason}") from error
        else:
            raise InvalidArgument(f"BYTES are of bytes or str, not {type(element).__name__}")
