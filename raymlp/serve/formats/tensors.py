"""Tensors of the Open Inference Protocol, and rows: one tensor for each column, of shape [N] or [N, 1].

Their values come as JSON or as bytes (little-endian, a text as its length in 4 bytes and itself). A column that is left out is null in
every row, and NaN in numbers that come as bytes is null too; JSON has null.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raymlp.core.errors import RequestError
from raymlp.data.contract import Contract

NUMPY: dict[str, str] = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4",
    "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
BYTES = "BYTES"
DATATYPES = (*NUMPY, BYTES)
OF_COLUMN = {"bool": "BOOL", "int": "INT64", "float": "FP64", "string": BYTES, "timestamp": BYTES, "bytes": BYTES}
"""Datatype by the type of a column."""


class Tensor(NamedTuple):
    """A column of N values, None for null. Text is str, also where a column holds bytes: base64, as in JSON rows."""

    name: str
    datatype: str
    values: list[Any]


def inputs_of(contract: Contract) -> list[dict[str, Any]]:
    """The tensors that a contract takes, as metadata has them."""
    return [{"name": name, "datatype": OF_COLUMN[rule.type], "shape": [-1]} for name, rule in contract.columns.items()]


def outputs_of(answers: pa.Table) -> list[Tensor]:
    """Columns of answers as tensors."""
    return [Tensor(name, datatype_of(answers.schema.field(name).type), answers.column(name).to_pylist()) for name in answers.column_names]


def datatype_of(kind: pa.DataType) -> str:
    """Datatype of a column of answers."""
    if pa.types.is_boolean(kind):
        return "BOOL"
    if pa.types.is_integer(kind):
        return "INT64"
    return "FP64" if pa.types.is_floating(kind) else BYTES


def rows_of(tensors: Sequence[Tensor], *, max_rows: int) -> list[dict[str, Any]]:
    """Rows of tensors that are all of one length. Raises RequestError."""
    if not tensors:
        raise RequestError("inputs", "empty", "one tensor for each column")
    names = [tensor.name for tensor in tensors]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"inputs.{twice[:60]}", "there twice", "one tensor for each column")
    rows = len(tensors[0].values)
    uneven = next((tensor for tensor in tensors if len(tensor.values) != rows), None)
    if uneven is not None:
        raise RequestError(f"inputs.{uneven.name[:60]}", f"{len(uneven.values):,} values", f"{rows:,}, as {names[0][:60]} has")
    if not 1 <= rows <= max_rows:
        raise RequestError("inputs", f"tensors of {rows:,} rows", f"1 to {max_rows:,} rows")
    return [dict(zip(names, row, strict=True)) for row in zip(*(tensor.values for tensor in tensors), strict=True)]


def rows_in(name: str, shape: Any) -> int:
    """N of a shape [N] or [N, 1]. Raises RequestError."""
    is_shape = isinstance(shape, list) and 1 <= len(shape) <= 2 and all(type(side) is int and side >= 0 for side in shape)
    if not is_shape or (len(shape) == 2 and shape[1] != 1):
        raise RequestError(f"inputs.{name[:60]}.shape", str(shape)[:60], "[N] or [N, 1]: one value a row")
    return int(shape[0])


def require_datatype(name: str, datatype: Any) -> str:
    """The datatype, once it is known to be one. Raises RequestError."""
    if datatype not in DATATYPES:
        raise RequestError(f"inputs.{name[:60]}.datatype", str(datatype)[:60], "one of " + ", ".join(DATATYPES))
    return str(datatype)


def from_bytes(name: str, datatype: str, content: bytes, rows: int, binary: Collection[str]) -> Tensor:
    """A tensor of N `rows` from its bytes; `binary` names columns that hold bytes, whose values become base64. Raises RequestError."""
    field = f"inputs.{name[:60]}"
    if datatype == BYTES:
        return Tensor(name, datatype, [told(name, text, binary) for text in _texts(field, content, rows)])
    dtype = np.dtype(NUMPY[datatype])
    if len(content) != rows * dtype.itemsize:
        raise RequestError(field, f"{len(content):,} bytes", f"{rows * dtype.itemsize:,}: {rows:,} values of {datatype}")
    if datatype == "BOOL":
        return Tensor(name, datatype, (np.frombuffer(content, np.uint8) != 0).tolist())
    return Tensor(name, datatype, no_nan(np.frombuffer(content, dtype).tolist()))


def no_nan(values: list[Any]) -> list[Any]:
    """The values with None for NaN."""
    return [None if value != value else value for value in values]


def told(name: str, content: bytes, binary: Collection[str]) -> str:
    """One value of BYTES as text. Raises RequestError when it is none."""
    if name in binary:
        return base64.b64encode(content).decode()
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RequestError(f"inputs.{name[:60]}", "bytes that are no text", "text in UTF-8") from None


def to_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as bytes, NaN for None."""
    if tensor.datatype == BYTES:
        texts = [("" if value is None else str(value)).encode() for value in tensor.values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    values = [np.nan if value is None else value for value in tensor.values]
    return np.array(values, NUMPY[tensor.datatype]).tobytes()


def _texts(field: str, content: bytes, rows: int) -> list[bytes]:
    texts: list[bytes] = []
    place = 0
    while place < len(content) and len(texts) < rows:
        end = place + 4 + int.from_bytes(content[place : place + 4], "little")
        if end > len(content):
            break
        texts.append(content[place + 4 : end])
        place = end
    if place != len(content) or len(texts) != rows:
        raise RequestError(field, f"{len(content):,} bytes", f"{rows:,} texts, each after its length in 4 bytes")
    return texts
