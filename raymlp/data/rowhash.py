"""One number a row: equal rows have equal numbers, in any file of any split."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.data.profile import column_type, to_text

Hashes = NDArray[np.uint64]
NULL = np.uint64(0x9E3779B97F4A7C15)


def row_hashes(table: pa.Table) -> Hashes:
    """Hash of each row over all columns, in whatever order they stand, uint64 (N,). Two different rows share one by a chance of 2^-64."""
    total = np.zeros(table.num_rows, np.uint64)
    for name in sorted(table.column_names):
        total = _mixed(total * np.uint64(31) + _mixed(_numbers(table.column(name))))
    return total


def _numbers(column: pa.ChunkedArray) -> Hashes:
    kind = column_type(column.type)
    array = column.combine_chunks()
    missing = array.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if kind in ("int", "timestamp"):
        whole = array.cast(pa.timestamp("us")) if kind == "timestamp" else array
        numbers = pc.cast(whole, pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    elif kind == "float":
        numbers = (pc.cast(array, pa.float64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False) + 0.0).view(np.uint64)
    else:
        codes = pc.dictionary_encode(to_text(array))
        values = np.array([_text_hash(text) for text in codes.dictionary.to_pylist()] or [0], np.uint64)
        numbers = values[codes.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    return np.where(missing, NULL, numbers)


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves half the bits of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)), np.uint64)
