"""Fitted steps that give one category id: from a vocabulary, from the bin of a number, or by a hash.

Ids: 0 a value without a slot, 1 no value, 2 and up the categories. Legend: B rows.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.features import DatePart
from raymlp.config.section import Section
from raymlp.data.profile import to_text
from raymlp.features.reading import label, number_reader, numbers

UNSEEN, MISSING, FIRST = 0, 1, 2
BETWEEN, ABSENT = "\x1f", "\x00"
"""What stands between the parts of a cross, and for a part that is missing."""
Ids = NDArray[np.int64]
RowId = Callable[[dict[str, Any]], int]


class Category(Section):
    """An id from a vocabulary."""

    kind: Literal["category"] = "category"
    column: str
    """Column read."""
    part: DatePart | None = None
    """Part of a timestamp column."""
    vocabulary: tuple[str, ...]
    """Values with a slot of their own, as text; the id is the position plus 2."""

    @property
    def name(self) -> str:
        return label(self.column, self.part)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.vocabulary) + FIRST

    def batch(self, table: pa.Table) -> Ids:
        """int64 (B,)."""
        values = table.column(self.column) if self.part is None else _whole(numbers(table.column(self.column), self.part))
        values, known = _comparable(values, self.vocabulary)
        found = pc.fill_null(pc.index_in(values, value_set=known), UNSEEN - FIRST)
        ids = found.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST
        if values.null_count:
            ids[values.is_null().to_numpy(zero_copy_only=False)] = MISSING
        return np.asarray(ids)

    def row(self) -> RowId:
        column, part = self.column, self.part
        ids = {value: index + FIRST for index, value in enumerate(self.vocabulary)}
        read = number_reader(part)

        def run(row: dict[str, Any]) -> int:
            value = row[column]
            if value is None:
                return MISSING
            return ids.get(_as_text(value) if part is None else str(int(read(value))), UNSEEN)

        return run


class Buckets(Section):
    """The bin of a number."""

    kind: Literal["buckets"] = "buckets"
    column: str
    """Column read."""
    edges: tuple[float, ...]
    """Inner edges, rising; a value on an edge belongs to the bin above."""

    @property
    def name(self) -> str:
        return f"{self.column}_bucket"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.edges) + 1 + FIRST

    def batch(self, table: pa.Table) -> Ids:
        """int64 (B,)."""
        values = numbers(table.column(self.column), None)
        ids = np.searchsorted(np.array(self.edges), values, side="right") + FIRST
        return np.where(np.isnan(values), MISSING, ids)

    def row(self) -> RowId:
        column, edges, read = self.column, list(self.edges), number_reader(None)

        def run(row: dict[str, Any]) -> int:
            value = row[column]
            if value is None:
                return MISSING
            number = read(value)
            return bisect.bisect_right(edges, number) + FIRST if abs(number) < float("inf") else MISSING

        return run


class Hashed(Section):
    """A stable hash of one or more values (BLAKE2b, 64 bits): no vocabulary, and now and then two values share an id."""

    kind: Literal["hashed"] = "hashed"
    columns: tuple[str, ...] = Field(min_length=1)
    """Columns read; several are crossed."""
    buckets: int = Field(ge=2)
    """Ids that values are spread over."""

    @property
    def name(self) -> str:
        return "_x_".join(self.columns) if len(self.columns) > 1 else f"{self.columns[0]}_hash"

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.buckets + FIRST

    def batch(self, table: pa.Table) -> Ids:
        """int64 (B,). Each distinct value is hashed once."""
        array = self._texts(table).combine_chunks().dictionary_encode()
        hashes = [hash_id(value, self.buckets) for value in array.dictionary.to_pylist()]
        places = pc.fill_null(array.indices, len(hashes)).to_numpy(zero_copy_only=False)
        return np.asarray(np.array([*hashes, MISSING], dtype=np.int64)[places])

    def _texts(self, table: pa.Table) -> pa.ChunkedArray:
        texts = [to_text(table.column(name)) for name in self.columns]
        if len(texts) == 1:
            return texts[0]
        return pc.binary_join_element_wise(*(pc.fill_null(text, ABSENT) for text in texts), BETWEEN)

    def row(self) -> RowId:
        buckets = self.buckets
        if len(self.columns) == 1:
            (column,) = self.columns
            return lambda row: MISSING if row[column] is None else hash_id(_as_text(row[column]), buckets)
        columns = self.columns

        def run(row: dict[str, Any]) -> int:
            parts = [ABSENT if row[name] is None else _as_text(row[name]) for name in columns]
            return hash_id(BETWEEN.join(parts), buckets)

        return run


IdStep = Annotated[Category | Buckets | Hashed, Field(discriminator="kind")]


def _as_text(value: Any) -> str:
    if value is True or value is False:
        return "true" if value else "false"
    return value if type(value) is str else str(value)


def hash_id(text: str, buckets: int) -> int:
    """The id of a text, from 2 up."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % buckets + FIRST


def _whole(values: NDArray[np.float64]) -> pa.Array:
    missing = np.isnan(values)
    return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)


def _comparable(values: Any, vocabulary: tuple[str, ...]) -> tuple[Any, pa.Array]:
    """Values and vocabulary of one type: whole numbers are looked up as numbers, which is quicker, everything else as text."""
    if pa.types.is_int64(values.type):
        try:
            known = [int(text) for text in vocabulary]
            if [str(value) for value in known] == list(vocabulary):
                return values, pa.array(known, pa.int64())
        except (ValueError, OverflowError):
            pass
    return to_text(values), pa.array(vocabulary, pa.string())
